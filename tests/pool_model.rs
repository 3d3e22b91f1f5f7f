//! The pool against a set: any sequence of operations, on any CPU, interrupted at times, with a source that fails when it likes.
#![cfg(not(loom))]

mod actions;
mod common;

use actions::pool::{Action, Call, Nested, Shape, request_of, run};
use framepool::Request;
use proptest::prelude::*;

fn request() -> impl Strategy<Value = Request> {
    any::<[bool; 3]>().prop_map(|[critical, fallback, zeroed]| request_of(critical, fallback, zeroed))
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        2 => request().prop_map(Call::Alloc),
        2 => Just(Call::Free),
        1 => (0..40u32).prop_map(Call::Reserve),
        1 => Just(Call::Maintain),
        1 => (0..48u32).prop_map(Call::Shrink),
    ]
}

fn nested() -> impl Strategy<Value = Nested> {
    prop_oneof![request().prop_map(Nested::Alloc), Just(Nested::Free), (0..4usize).prop_map(Nested::Migrate)]
}

fn action() -> impl Strategy<Value = Action> {
    let yes = any::<bool>;
    prop_oneof![
        6 => (request(), yes()).prop_map(|(request, soil)| Action::Alloc { request, soil }),
        1 => (request(), 0..20usize, yes(), yes())
            .prop_map(|(request, count, exact, soil)| Action::Bulk { request, count, exact, soil }),
        5 => (any::<usize>(), yes()).prop_map(|(which, promise)| Action::Free { which, promise }),
        1 => (0..20usize, yes()).prop_map(|(count, promise)| Action::FreeBulk { count, promise }),
        1 => (request(), 0..40u32).prop_map(|(request, frames)| Action::Reserve { request, frames }),
        1 => (0..20usize, yes()).prop_map(|(count, soil)| Action::Draw { count, soil }),
        1 => Just(Action::Release),
        2 => (0..4usize).prop_map(Action::Migrate),
        2 => Just(Action::Maintain),
        1 => (0..4usize).prop_map(Action::Drain),
        1 => (0..48u32).prop_map(Action::Shrink),
        1 => any::<bool>().prop_map(Action::Failing),
        1 => Just(Action::Vacate),
        2 => (call(), 0..8u8, nested()).prop_map(|(call, after, nested)| Action::Interrupt { call, after, nested }),
    ]
}

prop_compose! {
    fn shape()(
        capacity in 1..48u32,
        cpus in 1..4usize,
        magazine_size in 1..6u32,
        marks in prop::array::uniform4(0..48u32),
        zeroed in any::<bool>(),
    ) -> Shape {
        Shape::new(capacity, cpus, magazine_size, marks, zeroed)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_frame_is_somewhere_whatever_is_done(shape in shape(), actions in prop::collection::vec(action(), 0..200)) {
        run(shape, actions);
    }
}

/// The handlers above would show nothing if they never came.
#[test]
fn handlers_come_in_the_middle_of_calls() {
    let request = Request::ORDINARY;
    let calls = [Call::Alloc(request), Call::Free, Call::Reserve(3), Call::Maintain, Call::Shrink(0)];
    for call in calls {
        // With few frames out there is something to give back to the source, with many something to fetch.
        let cases = [2, 14].into_iter().flat_map(|out| (0..8).map(move |after| (out, after)));
        let handlers = cases.map(|(out, after)| {
            let alloc = || Action::Alloc { request, soil: false };
            let interrupt = Action::Interrupt { call, after, nested: Nested::Alloc(request) };
            let actions = (0..out).map(|_| alloc()).chain([interrupt]).collect();
            run(Shape::new(32, 2, 3, [1, 4, 16, 24], true), actions)
        });
        assert!(handlers.sum::<usize>() > 0, "{call:?}");
    }
}
