use ebbtide_shrink::Shrink;

#[derive(Shrink)]
struct Unknown {
    #[shrink(shrink)]
    list: Vec<u8>,
}

#[derive(Shrink)]
struct Both {
    #[shrink(skip, keep = 3)]
    list: Vec<u8>,
}

#[derive(Shrink)]
struct Twice {
    #[shrink(keep = 3, keep = 4)]
    list: Vec<u8>,
}

#[derive(Shrink)]
struct Alone {
    #[shrink(slack = measure)]
    list: Vec<u8>,
}

#[derive(Shrink)]
#[shrink(keep = 3)]
struct OnTheType {
    list: Vec<u8>,
}

#[derive(Shrink)]
union Either {
    a: u8,
    b: u16,
}

fn main() {}
