//! How fast a matrix is multiplied by one input, as in a step of decoding: bytes of codes and scales a second, by
//! scheme, instruction set and number of threads, beside the rate at which this machine reads memory.
//!
//!     cargo bench --bench gemv                 # criterion's measurements, then the table
//!     cargo bench --bench gemv -- tcq2         # criterion's measurements of one scheme
//!     cargo bench --bench gemv -- --table      # the table alone
//!
//! The matrices of a case take more memory together than the caches hold, and are read in turn. The table's cases are
//! interleaved, so that whatever else the machine does meanwhile falls on all of them alike: compare within a table.

mod cases;
mod table;

use cases::{Case, SHAPES, THREADS};
use criterion::{BenchmarkId, Criterion, Throughput};

fn main() {
    let memory = cases::memory();
    if std::env::args().all(|arg| arg != "--table") {
        criterion(&memory, &mut Criterion::default().sample_size(20).configure_from_args());
        let whole = std::env::args().skip(1).all(|arg| arg == "--bench");
        if !whole {
            return;
        }
    }
    table::print(&memory);
}

fn criterion(memory: &bytes::Bytes, criterion: &mut Criterion) {
    for threads in THREADS {
        let pool = cases::pool(threads);
        for shape in SHAPES {
            let mut group =
                criterion.benchmark_group(format!("{threads} threads, {} x {}", shape[0], shape[1]));
            for mut case in Case::all(memory, shape) {
                group.throughput(Throughput::Bytes(case.bytes() as u64));
                let id = BenchmarkId::new(case.scheme, case.kernels.isa);
                group.bench_function(id, |b| pool.install(|| b.iter(|| case.multiply())));
            }
            group.finish();
        }
    }
}
