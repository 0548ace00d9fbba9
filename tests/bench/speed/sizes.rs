//! What the size of a volume costs: time and memory of `objblk` processes that attach it.

use crate::disk::{Dice, PAGE, noise};
use crate::table::{print, row};
use crate::world::World;

const SIZES: [(&str, &str, u64); 4] = [
    ("1 GiB", "1G", 1 << 30),
    ("1 TiB", "1T", 1 << 40),
    ("16 TiB", "16T", 16 << 40),
    ("1 PiB", "1024T", 1 << 50),
];
/// Pages that are written all over the volume.
const WRITES: u64 = 2000;
/// Of them, those that are read after the second attach, each from a leaf of its own where there are
/// as many.
const READS: u64 = 200;

/// A row of the table.
fn needs(world: &World, (shown, size, bytes): (&str, &str, u64)) -> Vec<String> {
    let name = size.to_lowercase();
    world.run(&["create", &name, "--size", size]);
    let server = world.serve(&name, &[]);
    let (empty, empty_kib) = (server.took, server.peak_kib());
    let (mut client, data) = (server.connect(), noise(PAGE));
    let places = || {
        let mut dice = Dice::new(bytes);
        let pages = bytes / PAGE as u64;
        // Dice have 32 bits.
        let (coarse, fine) = (pages.min(1 << 20), pages.div_ceil(1 << 20));
        (0..WRITES).map(move |_| (dice.below(coarse) * fine + dice.below(fine)) * PAGE as u64)
    };
    for at in places() {
        client.write(at, &data).unwrap();
    }
    client.flush().unwrap();
    drop(client);
    server.stop();

    let server = world.serve(&name, &[]);
    let (mapped, mapped_kib) = (server.took, server.peak_kib());
    let mut client = server.connect();
    for at in places().take(READS as usize) {
        client.read(at, PAGE).unwrap();
    }
    let read_kib = server.peak_kib();
    drop(client);
    server.stop();
    row(&[
        &shown,
        &empty.as_millis(),
        &(empty_kib >> 10),
        &mapped.as_millis(),
        &(mapped_kib >> 10),
        &(read_kib >> 10),
    ])
}

/// Measures, and prints what comes of it.
pub fn print_table() {
    let world = World::s3();
    let heading = row(&[
        &"volume",
        &"empty: ready after ms",
        &"peak MiB",
        &"written: ready after ms",
        &"peak MiB",
        &"after reads, MiB",
    ]);
    let rows = std::iter::once(heading).chain(SIZES.map(|size| needs(&world, size)));
    let title =
        format!("\nattach by size; written: {WRITES} pages at random, {READS} of them read");
    print(&title, &rows.collect::<Vec<_>>());
}
