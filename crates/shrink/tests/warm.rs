//! What must not allocate: a warm pool's get and return, a poll without pressure, a task that waits again and again.

mod common;

use common::{Counting, calls};
use ebbtide_shrink::{Pool, Registry, Turn};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

#[global_allocator]
static HEAP: Counting = Counting;

fn allocates(work: impl FnOnce()) -> usize {
    let before = calls();
    work();
    calls() - before
}

#[test]
fn a_warm_pool_does_not_allocate() {
    let pool = Pool::builder(|| vec![0_u8; 1000]).reset(Vec::clear).build();
    drop((pool.get(), pool.get()));
    let warm = || {
        let (mut a, b) = (pool.get(), pool.try_get());
        a.push(1);
        drop((a, b));
    };
    assert_eq!(allocates(|| (0..1000).for_each(|_| warm())), 0);
    let mut context = Context::from_waker(Waker::noop());
    let ready = || assert!(pin!(pool.get_async()).poll(&mut context).is_ready());
    assert_eq!(allocates(ready), 0);
}

#[test]
fn a_poll_without_pressure_does_not_allocate() {
    let registry = Registry::new();
    let mut member = registry.member("list");
    let mut list = Vec::<u8>::with_capacity(5000);
    let mut context = Context::from_waker(Waker::noop());
    assert!(pin!(member.flagged()).poll(&mut context).is_pending());
    let polls = allocates(|| {
        for _ in 0..1000 {
            assert!(matches!(member.poll(&mut list), Turn::Quiet) && matches!(registry.poll(), Turn::Quiet));
            assert!(pin!(member.flagged()).poll(&mut context).is_pending());
        }
    });
    assert_eq!(polls, 0);
}
