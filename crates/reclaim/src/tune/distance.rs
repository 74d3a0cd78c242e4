//! What a misspelt name may have meant: the nearest known one by edit distance.

/// The one of `known` that is nearest to `name`: one letter off in short names, a quarter of the letters and at most
/// three in long ones. `None` for a known name.
pub(crate) fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let length = name.chars().count();
    let most = (length / 4).clamp(1, 3);
    // A foreign name may be as long as a process's environment: one of another length is not compared at all.
    let alike = known.into_iter().filter(|one| one.chars().count().abs_diff(length) <= most);
    // Letters changed, added, dropped, or swapped with their neighbour.
    let near = alike.map(|one| (strsim::osa_distance(name, one), one)).filter(|(far, _)| *far <= most);
    near.min_by_key(|(far, _)| *far).filter(|(far, _)| *far > 0).map(|(_, one)| one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_meant() {
        let known = ["vm.swappiness", "vm.dirty_ratio", "MALLOC_TRIM_THRESHOLD_"];
        assert_eq!(nearest("vm.swapiness", known), Some("vm.swappiness"));
        assert_eq!(nearest("vm.swappniess", known), Some("vm.swappiness"), "two neighbours swapped");
        assert_eq!(nearest("MALLOC_TRIM_THRESHOLD", known), Some("MALLOC_TRIM_THRESHOLD_"));
        assert_eq!(nearest("vm.swappiness", known), None, "it is known");
        assert_eq!(nearest("PATH", known), None);
    }

    proptest! {
        #[test]
        fn never_panics(name: String, known: String) {
            prop_assert_eq!(nearest(&name, [&*name]), None);
            nearest(&name, [&*known]);
        }
    }
}
