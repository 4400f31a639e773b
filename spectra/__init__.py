"""Class-wise Hessian spectra of classifiers, each number with its error."""
