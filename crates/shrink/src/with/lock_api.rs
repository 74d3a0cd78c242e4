//! `parking_lot`, and every other lock that is made of lock_api's.

use crate::std_impls::lock;
use lock_api::{Mutex, RawMutex, RawRwLock, RwLock};

lock! {
    [R: RawMutex,] Mutex<R, T>, this => this.try_lock(), this.try_lock(), this.get_mut();
    [R: RawRwLock,] RwLock<R, T>, this => this.try_read(), this.try_write(), this.get_mut();
}
