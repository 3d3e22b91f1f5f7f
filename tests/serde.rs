//! Statistics go through a serializer field by field, under the names that they have.
#![cfg(feature = "serde")]

use framepool::{AnonymousMemory, Builder};

#[test]
fn statistics_are_an_object_of_numbers() {
    let pool = Builder::new(64).start(AnonymousMemory::new(64).unwrap()).unwrap();
    let frame = pool.alloc().unwrap();
    let stats = pool.stats();
    let value = serde_json::to_value(stats).unwrap();
    assert_eq!((&value["in_use"], &value["capacity"]), (&1.into(), &64.into()));
    // As many fields as the table for people has lines.
    assert_eq!(value.as_object().unwrap().len(), stats.to_string().lines().count());
    drop(frame);
}
