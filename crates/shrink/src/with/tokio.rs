//! `tokio`: its locks are tried, never awaited. Channels free their blocks of messages as these are received.

use crate::std_impls::{flat, lock};
use tokio::sync::{Mutex, Notify, RwLock, Semaphore, mpsc, oneshot};

lock! {
    [] Mutex<T>, this => this.try_lock().ok(), this.try_lock().ok(), this.get_mut();
    [] RwLock<T>, this => this.try_read().ok(), this.try_write().ok(), this.get_mut();
}

flat! {
    [] Notify, [] Semaphore,
    [T] mpsc::Sender<T>, [T] mpsc::Receiver<T>, [T] mpsc::UnboundedSender<T>, [T] mpsc::UnboundedReceiver<T>,
    [T] oneshot::Sender<T>, [T] oneshot::Receiver<T>,
}
