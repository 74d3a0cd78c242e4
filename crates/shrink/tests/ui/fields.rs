use ebbtide_shrink::{Shrink, ShrinkShared};

struct Foreign;

#[derive(Shrink)]
struct Owns {
    foreign: Foreign,
}

#[derive(ShrinkShared)]
struct Shares {
    foreign: Foreign,
}

fn main() {}
