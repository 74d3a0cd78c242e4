//! Cutting a `Vec` or `String` down without a second buffer, and without the end of the process where the allocator
//! refuses: `Vec::shrink_to` calls `handle_alloc_error` then, which aborts, and there is no `try_shrink_to`. A new
//! `Vec` by `try_reserve_exact` would do safely, but hold both buffers for a moment, and copy: 2 to 47 ms for 64
//! MiB cut to 48 that glibc cuts in place in 6 us (`examples/measure.rs`).
//!
//! Invariant: the elements are the same before and after, whatever the allocator answers.
#![allow(unsafe_code)]

use crate::{Refused, Way};
use std::alloc::{Layout, realloc};
use std::mem::ManuallyDrop;

/// What std's own `System` makes a second block for, where blocks are resized.
const ALIGNED: usize = 16;

/// How a vector's buffer is cut, as far as its type tells: an allocator may copy of its own accord.
pub(crate) const fn way<T>() -> Way {
    if align_of::<T>() > ALIGNED { Way::Copies } else { Way::InPlace }
}

/// Cuts the vector's buffer to room for `room` elements, or as many as it holds.
///
/// # Errors
/// [`Refused`] if the allocator refuses; the vector is then as it was.
pub(crate) fn vec<T>(vec: &mut Vec<T>, room: usize) -> Result<(), Refused> {
    let room = room.max(vec.len());
    if room >= vec.capacity() || size_of::<T>() == 0 {
        return Ok(());
    }
    if room == 0 {
        *vec = Vec::new();
        return Ok(());
    }
    let (Ok(old), Ok(new)) = (Layout::array::<T>(vec.capacity()), Layout::array::<T>(room)) else {
        return Err(Refused);
    };
    let mut taken = ManuallyDrop::new(std::mem::take(vec));
    let (start, len, capacity) = (taken.as_mut_ptr(), taken.len(), taken.capacity());
    // SAFETY: a Vec of a sized type with capacity above 0 owns a block of the global allocator with the layout of an
    // array of that capacity (documented by `Vec::from_raw_parts`); `taken` is not used again. The new size is above
    // 0, as `room` and the size of `T` are, and no larger than the old one, which was valid.
    let moved = unsafe { realloc(start.cast(), old, new.size()) };
    let (start, room, answer) =
        if moved.is_null() { (start, capacity, Err(Refused)) } else { (moved.cast(), room, Ok(())) };
    // SAFETY: either realloc refused, and the block is the old one, untouched; or this is its successor, with the
    // layout of an array of `room`, in which the first `len <= room` elements were kept.
    *vec = unsafe { Vec::from_raw_parts(start, len, room) };
    answer
}

/// The same for a string's bytes.
///
/// # Errors
/// [`Refused`] if the allocator refuses; the string is then as it was.
pub(crate) fn string(text: &mut String, room: usize) -> Result<(), Refused> {
    // SAFETY: `vec` keeps the bytes and their number.
    vec(unsafe { text.as_mut_vec() }, room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_stay() {
        let mut list: Vec<String> = Vec::with_capacity(1000);
        list.extend((0..10).map(|n| n.to_string()));
        vec(&mut list, 20).unwrap();
        assert_eq!((list.capacity(), list.len()), (20, 10));
        vec(&mut list, 0).unwrap();
        assert_eq!(list.capacity(), 10);
        vec(&mut list, 1000).unwrap();
        assert_eq!(list.capacity(), 10);
        assert_eq!(list.concat(), "0123456789");
        list.clear();
        vec(&mut list, 0).unwrap();
        assert_eq!(list.capacity(), 0);
        let mut nothing = vec![(); 10];
        vec(&mut nothing, 5).unwrap();
        assert_eq!(nothing.len(), 10);
        let mut text = String::with_capacity(100);
        text.push_str("größer");
        string(&mut text, 0).unwrap();
        assert_eq!((text.as_str(), text.capacity()), ("größer", 8));
    }
}
