//! Processors for which it is not known how to borrow a thread: none is.

use super::BorrowError;
use crate::freeze::Stopped;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::ops::Range;
use std::time::Duration;

/// A stopped thread that makes calls; there is none.
pub struct Borrowed<'t> {
    never: Infallible,
    stopped: PhantomData<&'t Stopped<'t>>,
}

impl<'t> Borrowed<'t> {
    /// [`BorrowError::Unsupported`].
    pub fn borrow(
        _: &'t Stopped<'_>,
        _: u32,
        _: u64,
        _: Range<u64>,
        _: bool,
    ) -> Result<Borrowed<'t>, BorrowError> {
        Err(BorrowError::Unsupported)
    }

    /// Calls a function.
    pub fn call(&mut self, _: u64, _: [u64; 6], _: Duration) -> Result<(), BorrowError> {
        match self.never {}
    }

    /// Makes a system call.
    pub fn system_call(&mut self, _: u64, _: u64, _: [u64; 6], _: Duration) -> Result<i64, BorrowError> {
        match self.never {}
    }

    /// Writes what a system call reads.
    pub fn scratch(&self, _: &[u8]) -> Result<u64, BorrowError> {
        match self.never {}
    }

    /// Writes what a function reads.
    pub fn beside(&self, _: &[u8]) -> Result<u64, BorrowError> {
        match self.never {}
    }
}
