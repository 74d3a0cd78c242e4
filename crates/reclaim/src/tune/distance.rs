//! What a misspelt name may have meant: the nearest known one by edit distance.

/// Longer names are compared by their beginning: nobody misspells more than that.
const LONGEST: usize = 64;

/// How many letters of `a` have to be changed, added, dropped or swapped with their neighbour to make `b`.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(LONGEST).collect();
    let b: Vec<char> = b.chars().take(LONGEST).collect();
    let mut rows = [vec![0; b.len() + 1], (0..=b.len()).collect(), vec![0; b.len() + 1]];
    for (i, &x) in a.iter().enumerate() {
        rows[2][0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let mut least = (rows[1][j] + usize::from(x != y)).min(rows[1][j + 1] + 1).min(rows[2][j] + 1);
            if i > 0 && j > 0 && x == b[j - 1] && a[i - 1] == y {
                least = least.min(rows[0][j - 1] + 1);
            }
            rows[2][j + 1] = least;
        }
        rows.rotate_left(1);
    }
    rows[1][b.len()]
}

/// The one of `known` that is nearest to `name`: one letter off in short names, a quarter of the letters and at most
/// three in long ones. `None` for a known name.
pub(crate) fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let most = (name.chars().count() / 4).clamp(1, 3);
    let near = known.into_iter().map(|one| (distance(name, one), one)).filter(|(far, _)| *far <= most);
    near.min_by_key(|(far, _)| *far).filter(|(far, _)| *far > 0).map(|(_, one)| one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn letters_off() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("swapiness", "swappiness"), 1);
        assert_eq!(distance("vm.swappniess", "vm.swappiness"), 1, "two neighbours swapped");
    }

    #[test]
    fn what_was_meant() {
        let known = ["vm.swappiness", "vm.dirty_ratio", "MALLOC_TRIM_THRESHOLD_"];
        assert_eq!(nearest("vm.swapiness", known), Some("vm.swappiness"));
        assert_eq!(nearest("MALLOC_TRIM_THRESHOLD", known), Some("MALLOC_TRIM_THRESHOLD_"));
        assert_eq!(nearest("vm.swappiness", known), None, "it is known");
        assert_eq!(nearest("PATH", known), None);
    }

    proptest! {
        #[test]
        fn never_panics_and_is_symmetric(a: String, b: String) {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &a), 0);
        }
    }
}
