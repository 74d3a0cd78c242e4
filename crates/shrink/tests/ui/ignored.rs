#![deny(unused_must_use)]

use ebbtide_shrink::{Policy, Registry};

fn main() {
    let registry = Registry::new();
    registry.member("nobody polls it");
    registry.member("the policy goes with it").with_policy(Policy::new());
}
