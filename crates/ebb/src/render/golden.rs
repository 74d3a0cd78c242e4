//! Texts compared with the files in tests/golden, at 60 and at 80 columns.
//!
//! After a deliberate change: `EBB_UPDATE_GOLDEN=1 cargo test -p ebb --bin ebb golden`, then read the diff.

use super::{Page, columns};
use std::path::Path;

/// Compares what `text` lays out with the files of `name`. No line is wider than the page, but those that `may_be_wide`.
pub(crate) fn golden(name: &str, text: impl Fn(Page) -> String, may_be_wide: impl Fn(&str) -> bool) {
    for width in [60, 80] {
        let text = anstream::adapter::strip_str(&text(Page { width })).to_string();
        for line in text.lines().filter(|line| !may_be_wide(line)) {
            assert!(columns(line) <= width, "{} columns: {line}", columns(line));
        }
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text}");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}-{width}.txt"));
        if std::env::var_os("EBB_UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, golden, "not as in {}:\n{text}", file.display());
    }
}
