//! `bytes`: a `BytesMut` is replaced by a smaller one.
//!
//! A `BytesMut` that was split shares its storage with the other parts, which it does not tell: then the copy is all
//! that changes hands, and the storage goes with its last part. A `Bytes` is fixed, and shared.

use crate::std_impls::{flat, flat_shared};
use crate::{Bytes as Size, Cascade, Refused, Shrink, Site};
use bytes::{Bytes, BytesMut};

impl Site for BytesMut {
    fn used(&self) -> usize {
        self.len()
    }
    fn room(&self) -> usize {
        self.capacity()
    }
    fn bytes(&self, room: usize) -> Size {
        Size(room)
    }
    fn fit(&mut self, room: usize) -> Result<(), Refused> {
        if room == 0 && self.is_empty() {
            *self = BytesMut::new();
            return Ok(());
        }
        let mut smaller = Vec::new();
        smaller.try_reserve_exact(room.max(self.len()))?;
        smaller.extend_from_slice(self);
        // `Bytes` from a full vector and `BytesMut` from unshared `Bytes` take the buffer over without allocating; from
        // a vector with room to spare, or by `with_capacity`, it would abort where memory is refused.
        let len = smaller.len();
        smaller.resize(smaller.capacity(), 0);
        *self = BytesMut::from(Bytes::from(smaller));
        self.truncate(len);
        Ok(())
    }
    fn kind(&self) -> &'static str {
        "BytesMut"
    }
}

impl Shrink for BytesMut {
    fn slack(&self) -> Size {
        self.unused()
    }
    fn shrink(&mut self, cascade: &mut Cascade<'_>) {
        cascade.site(self);
    }
}

flat! { [] Bytes }
flat_shared! { [] BytesMut }
