//! The few statistics that the report uses.

/// The median; the mean of the two middle values if their number is even.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Half the range of the values, relative to their median: how far repetitions are apart.
pub(crate) fn spread(values: &[f64]) -> Option<f64> {
    let middle = median(values.iter().copied())?;
    let least = values.iter().copied().reduce(f64::min)?;
    let most = values.iter().copied().reduce(f64::max)?;
    (middle != 0.0).then(|| (most - least) / 2.0 / middle)
}

/// What a comparison with a reference says; differences under [`TIE`] say nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Verdict {
    Win(f64),
    Tie(f64),
    Loss(f64),
}

impl Verdict {
    /// Judges how many times better than the reference something is.
    pub(crate) fn of(times_better: f64) -> Self {
        if times_better >= 1.0 + TIE {
            Self::Win(times_better)
        } else if times_better <= 1.0 / (1.0 + TIE) {
            Self::Loss(times_better)
        } else {
            Self::Tie(times_better)
        }
    }
}

/// Relative difference below which two figures count as equal on a virtual machine.
const TIE: f64 = 0.15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_and_no_values() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median([7.0]), Some(7.0));
        assert_eq!(median([]), None);
    }

    #[test]
    fn median_ignores_an_outlier() {
        assert_eq!(median([1.0, 1e9, 2.0]), Some(2.0));
    }

    #[test]
    fn spread_is_half_the_relative_range() {
        assert_eq!(spread(&[90.0, 100.0, 120.0]), Some(0.15));
        assert_eq!(spread(&[5.0]), Some(0.0));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn verdicts_are_symmetric() {
        assert_eq!(Verdict::of(1.2), Verdict::Win(1.2));
        assert_eq!(Verdict::of(1.1), Verdict::Tie(1.1));
        assert_eq!(Verdict::of(0.9), Verdict::Tie(0.9));
        assert_eq!(Verdict::of(1.0 / 1.2), Verdict::Loss(1.0 / 1.2));
    }
}
