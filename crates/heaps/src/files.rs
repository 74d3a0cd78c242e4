//! What was found in files, for looks into many processes: they map the same ones, and a large program is read once.
//!
//! Invariant: what is kept is a function of a part of a file alone, not of who maps it. It is kept for as long as a few
//! looks take, so a file that is written to meanwhile is not noticed.

use crate::source::Area;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// A part of a file: device, inode, offset, length.
type Part = (u32, u32, u64, u64, u64);

/// The most parts that are remembered; a process maps some ten, and most share them.
const PARTS_MOST: usize = 1 << 16;

/// What was found in parts of files.
#[derive(Debug, Default)]
pub struct Files(Mutex<BTreeMap<Part, Option<String>>>);

impl Files {
    /// What `search` finds in the first `size` bytes of the file's content at `area`, or found there before; `None`
    /// where it could not be read, which is not remembered.
    pub(crate) fn found(
        &self,
        area: &Area,
        size: u64,
        search: impl FnOnce() -> Option<Option<String>>,
    ) -> Option<Option<String>> {
        let part = (area.dev.major, area.dev.minor, area.inode, area.offset.0, size);
        // Never held while a file is read: another look may search the same one meanwhile, and finds the same.
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known().get(&part) {
            return Some(found.clone());
        }
        let found = search()?;
        let mut known = known();
        if known.len() < PARTS_MOST {
            known.insert(part, found.clone());
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_searched_once() {
        let files = Files::default();
        let (library, other) =
            (Area { inode: 7, ..Area::anon(0..8192) }, Area { inode: 8, ..Area::anon(0..8192) });
        let found = || Some(Some("2.1".to_owned()));
        assert_eq!(files.found(&library, 8192, || None), None);
        assert_eq!(files.found(&library, 8192, found), found(), "what could not be read is tried again");
        assert_eq!(files.found(&library, 8192, || None), found());
        assert_eq!(files.found(&library, 4096, || Some(None)), Some(None), "another part");
        assert_eq!(files.found(&other, 8192, || None), None);
    }
}
