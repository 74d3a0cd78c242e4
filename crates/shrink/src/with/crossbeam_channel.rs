//! `crossbeam-channel`: nothing can be given back from outside, and little is kept: an unbounded channel frees each
//! block of 31 messages when they are received, a bounded one has the room for its bound from the beginning.

use crate::std_impls::flat;
use crossbeam_channel::{Receiver, Sender};

flat! { [T] Sender<T>, [T] Receiver<T> }
