//! The simulation of many CPUs (`examples/scale`): what it takes for a machine behaves like one, and the pool on it like the pool.
#![allow(dead_code, reason = "the parts that the tests need")]

#[path = "../examples/scale/line.rs"]
mod line;
#[path = "../examples/scale/machine.rs"]
mod machine;
#[path = "../examples/scale/workload.rs"]
mod workload;

use line::{Layout, NANOSECOND};
use machine::{Class, Measured};
use workload::{Run, Workload};

fn run(workload: Workload, cpus: usize, nodes: usize) -> Measured {
    let layout = Layout { cpus, nodes, own: NANOSECOND / 2, near: 110 * NANOSECOND, far: 250 * NANOSECOND };
    // Fails when a frame is lost, in the hands of a CPU that is in the midst of an operation for example.
    Run { workload, layout, magazine_size: 63, depots: 1 }.measure().unwrap()
}

fn all_lines(measured: &Measured) -> f64 {
    [Class::Depot, Class::Entries, Class::Other].map(|class| measured.lines(class)).iter().sum()
}

#[test]
fn a_pair_moves_no_line_however_many_cpus_there_are() {
    let [one, many] = [1, 16].map(|cpus| run(Workload::Pair, cpus, 1));
    assert_eq!([&one, &many].map(all_lines), [0.0; 2]);
    assert_eq!(one.pair(1), many.pair(16));
    assert!((2.0..10.0).contains(&one.pair(1)), "{one:?}");
}

#[test]
fn every_frame_that_another_cpu_gives_back_travels_through_the_depot() {
    let [near, far] = [1, 2].map(|nodes| run(Workload::ProducerConsumer, 2, nodes));
    for measured in [near, far] {
        // Sixteen entries are on a line, which goes to the one CPU and back.
        assert!(measured.lines(Class::Entries) > 2.0 / 16.0 - 0.02, "{measured:?}");
        assert!(measured.lines(Class::Depot) > 0.0 && measured.lines(Class::Other) < 0.01, "{measured:?}");
    }
    assert!(
        far.pair(2) > 1.5 * near.pair(2) && far.pair(2) < 250.0 / 110.0 * near.pair(2),
        "{near:?} {far:?}"
    );
}

#[test]
fn exchanges_of_the_depot_fail_where_many_cpus_want_it() {
    let [few, many] = [2, 16].map(|cpus| run(Workload::Batch, cpus, 1));
    assert!(many.lines(Class::Depot) > 2.0 * few.lines(Class::Depot), "{few:?} {many:?}");
    let (queued, moved) = many.shares(16, Class::Depot);
    assert!(queued > 0.5 && queued + moved < 1.0, "{many:?}");
}

#[test]
fn a_run_comes_out_the_same_each_time() {
    for workload in Workload::ALL {
        let of = |measured: Measured| (measured.time, measured.pairs, measured.spent.lines, measured.busiest);
        assert_eq!(of(run(workload, 4, 2)), of(run(workload, 4, 2)), "{workload:?}");
    }
}
