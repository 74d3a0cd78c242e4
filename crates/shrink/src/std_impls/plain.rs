//! What holds nothing to give back: values without heap, what has no spare room by construction, and what belongs to
//! the kernel or to another owner.

/// Implements both traits by giving back nothing.
macro_rules! flat {
    ($($(#[$why:meta])* [$($generics:tt)*] $type:ty),* $(,)?) => {$(
        $(#[$why])*
        impl<$($generics)*> $crate::Shrink for $type {
            fn slack(&self) -> $crate::Bytes {
                $crate::Bytes::ZERO
            }
            fn shrink(&mut self, _: &mut $crate::Cascade<'_>) {}
            fn is_flat() -> bool {
                true
            }
        }
        $crate::std_impls::flat_shared!([$($generics)*] $type);
    )*};
}

/// Implements [`ShrinkShared`](crate::ShrinkShared) by giving back nothing.
macro_rules! flat_shared {
    ($($(#[$why:meta])* [$($generics:tt)*] $type:ty),* $(,)?) => {$(
        $(#[$why])*
        impl<$($generics)*> $crate::ShrinkShared for $type {
            fn slack_shared(&self) -> $crate::Bytes {
                $crate::Bytes::ZERO
            }
            fn shrink_shared(&self, _: &mut $crate::Cascade<'_>) {}
            fn is_flat_shared() -> bool {
                true
            }
        }
    )*};
}

pub(crate) use {flat, flat_shared};

use crate::{Bytes, Cascade, Shrink, ShrinkShared};
use std::cell::Cell;
use std::collections::{BTreeSet, BinaryHeap};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::sync::atomic;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

flat! {
    [] (), [] bool, [] char, [] f32, [] f64,
    [] i8, [] i16, [] i32, [] i64, [] i128, [] isize,
    [] u8, [] u16, [] u32, [] u64, [] u128, [] usize,
    [] std::num::NonZeroU8, [] std::num::NonZeroU16, [] std::num::NonZeroU32, [] std::num::NonZeroU64,
    [] std::num::NonZeroU128, [] std::num::NonZeroUsize, [] std::num::NonZeroI8, [] std::num::NonZeroI16,
    [] std::num::NonZeroI32, [] std::num::NonZeroI64, [] std::num::NonZeroI128, [] std::num::NonZeroIsize,
    [] atomic::AtomicBool, [] atomic::AtomicU8, [] atomic::AtomicU16, [] atomic::AtomicU32, [] atomic::AtomicU64,
    [] atomic::AtomicUsize, [] atomic::AtomicI8, [] atomic::AtomicI16, [] atomic::AtomicI32, [] atomic::AtomicI64,
    [] atomic::AtomicIsize,
    /// Belongs to whoever knows what it points to.
    [T] atomic::AtomicPtr<T>,
    [R] fn() -> R, [A, R] fn(A) -> R, [A, B, R] fn(A, B) -> R, [A, B, C, R] fn(A, B, C) -> R,
    [A, B, C, D, R] fn(A, B, C, D) -> R,
    [] std::sync::Condvar, [] std::sync::Barrier, [] std::sync::Once,
    [] Duration, [] Instant, [] SystemTime,
    [] IpAddr, [] Ipv4Addr, [] Ipv6Addr, [] SocketAddr, [] SocketAddrV4, [] SocketAddrV6,
    [] std::fs::File, [] std::net::TcpListener, [] std::net::TcpStream, [] std::net::UdpSocket,
    [] std::os::unix::net::UnixStream, [] std::os::unix::net::UnixListener, [] std::os::fd::OwnedFd,
    [] std::process::Child,
    [] std::hash::RandomState, [T] std::hash::BuildHasherDefault<T>,
    [T: ?Sized] PhantomData<T>,
    [] thread::Thread, [T] thread::JoinHandle<T>,
    /// Belongs to another owner.
    [T: ?Sized] &T,
    /// Holds no value, and its block goes with the last `Weak`.
    [T: ?Sized] std::rc::Weak<T>,
    /// Holds no value, and its block goes with the last `Weak`.
    [T: ?Sized] std::sync::Weak<T>,
    /// Made without spare room.
    [] CString,
    /// Elements of a set cannot be changed; the tree frees its nodes as they empty.
    [T] BTreeSet<T>,
    /// A channel frees its blocks of messages as they are received; one with a bound keeps the room for its bound.
    [T] mpsc::Sender<T>,
    /// As the sender.
    [T] mpsc::SyncSender<T>,
    /// As the sender.
    [T] mpsc::Receiver<T>,
}

/// What has no size of its own is asked in its box.
macro_rules! flat_unsized {
    ($($type:ty),*) => {$(
        impl Shrink for $type {
            fn slack(&self) -> Bytes {
                Bytes::ZERO
            }
            fn shrink(&mut self, _: &mut Cascade<'_>) {}
        }
        impl ShrinkShared for $type {
            fn slack_shared(&self) -> Bytes {
                Bytes::ZERO
            }
            fn shrink_shared(&self, _: &mut Cascade<'_>) {}
        }
    )*};
}

flat_unsized!(str, CStr, OsStr, Path);
flat_shared! {
    [] String, [] PathBuf, [] OsString, [T] Cell<T>,
    /// Elements may not be changed in place, as their order could be by that.
    [T] BinaryHeap<T>,
}
