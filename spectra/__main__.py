"""List the commands: `python -m spectra`."""

COMMANDS = {
    "esd": "from a checkpoint to the spectrum of every class, with certified ends",
    "trajectory": "the same for every checkpoint that runs have kept, against the epoch",
    "landscape": "the losses along λmin's and λmax's vectors, and what SAM's step does there",
    "draws": "the Hessians of several augmentation draws",
    "compare": "stored results of several analyses in one table",
    "report": "one page of stored results, as markdown and html",
    "train": "train a network by a recipe, long-tailed, by SGD, SAM and others",
    "accuracy": "test accuracies of runs beside the published ones",
    "data": "which data are known, what a folder holds; write a drawn set",
}

if __name__ == "__main__":
    print("python -m spectra.COMMAND --help tells more of each:\n")
    for name, about in COMMANDS.items():
        print(f"  spectra.{name:11} {about}")
