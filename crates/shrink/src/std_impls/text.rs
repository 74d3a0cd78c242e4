//! Strings of all kinds: vectors of bytes under another name.

use crate::{Bytes, Cascade, Refused, Shrink, Site, Way, refit};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

macro_rules! text {
    ($type:ty, $kind:literal, $used:expr, $fit:expr) => {
        impl Site for $type {
            fn used(&self) -> usize {
                $used(self)
            }
            fn room(&self) -> usize {
                self.capacity()
            }
            fn bytes(&self, room: usize) -> Bytes {
                Bytes(room)
            }
            fn way(&self) -> Way {
                Way::InPlace
            }
            fn fit(&mut self, room: usize) -> Result<(), Refused> {
                $fit(self, room)
            }
            fn kind(&self) -> &'static str {
                $kind
            }
        }

        impl Shrink for $type {
            fn slack(&self) -> Bytes {
                self.unused()
            }
            fn shrink(&mut self, cascade: &mut Cascade<'_>) {
                cascade.site(self);
            }
        }
    };
}

text!(String, "String", String::len, refit::string);
text!(OsString, "OsString", |s: &OsString| s.len(), os_string);
text!(PathBuf, "PathBuf", |s: &PathBuf| s.as_os_str().len(), |path: &mut PathBuf, room| {
    let mut inner = std::mem::take(path).into_os_string();
    let answer = os_string(&mut inner, room);
    *path = inner.into();
    answer
});

fn os_string(text: &mut OsString, room: usize) -> Result<(), Refused> {
    let mut bytes = std::mem::take(text).into_vec();
    let answer = refit::vec(&mut bytes, room);
    *text = OsString::from_vec(bytes);
    answer
}
