//! How long each decoder takes for its corpus (`fuzz/corpus`), and how fast bytes go through a
//! resumable stream without a network. A decoder with an encoder also encodes its results and reads
//! them again.

use std::{fs, hint::black_box, path::Path};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use throughline::fuzzing::{TARGETS, transfer};

fn decoders(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("corpus");
    for (name, target) in TARGETS {
        let files = corpus(name);
        let bytes = files.iter().map(Vec::len).sum::<usize>();
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(*name, |bencher| {
            bencher.iter(|| files.iter().filter(|file| target(black_box(file))).count());
        });
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let files = fs::read_dir(folder).expect("every target has a corpus");
    files
        .map(|file| fs::read(file.expect("a file").path()).expect("a file"))
        .collect()
}

fn resumable_stream(criterion: &mut Criterion) {
    const BYTES: usize = 1 << 20;
    let mut group = criterion.benchmark_group("resumable stream");
    group.throughput(Throughput::Bytes(BYTES as u64));
    let bytes = vec![0x5a; BYTES];
    group.bench_function("1 MiB", |bencher| {
        bencher.iter(|| transfer(black_box(&bytes)))
    });
}

criterion_group!(benches, decoders, resumable_stream);
criterion_main!(benches);
