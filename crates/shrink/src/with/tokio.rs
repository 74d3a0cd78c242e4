//! `tokio`: its locks are tried, never awaited. Channels free their blocks of messages as these are received; `broadcast`
//! has the slots for its bound from the beginning, each with its last message until all have received it; `watch` has one
//! value, which only its senders may change.

use crate::std_impls::{flat, here, lock, through, through_shared};
use crate::{Shrink, ShrinkShared};
use tokio::sync::{Barrier, Mutex, Notify, OnceCell, RwLock, Semaphore, broadcast, mpsc, oneshot, watch};

lock! {
    [] Mutex<T>, this => this.try_lock().ok(), this.try_lock().ok(), this.get_mut();
    [] RwLock<T>, this => this.try_read().ok(), this.try_write().ok(), this.get_mut();
}

through! { [T: Shrink] OnceCell<T>, T::is_flat(), here, this => this.get(), this.get_mut(); }
through_shared! { [T: ShrinkShared] OnceCell<T>, T::is_flat_shared(), here, this => this.get(); }

flat! {
    [] Notify, [] Semaphore, [] Barrier,
    [T] mpsc::Sender<T>, [T] mpsc::Receiver<T>, [T] mpsc::UnboundedSender<T>, [T] mpsc::UnboundedReceiver<T>,
    [T] oneshot::Sender<T>, [T] oneshot::Receiver<T>,
    [T] broadcast::Sender<T>, [T] broadcast::Receiver<T>, [T] watch::Sender<T>, [T] watch::Receiver<T>,
}
