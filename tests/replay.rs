//! The main job as a program: what it says of good traces, and of traces that are cut off, malformed or contradict themselves.
#![cfg(not(loom))]

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

fn replay(name: &str, trace: &[u8], arguments: &[&str]) -> Output {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let path = directory.join(name);
    fs::write(&path, trace).unwrap();
    Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--example", "replay", "--", "--json", "--pictures"])
        .arg(&directory)
        .arg("--trace")
        .arg(&path)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

/// Two CPUs, three domains; unmaps of several maps at once, on the other CPU, and of a part of one; a large leaf is split.
const STRICT: &str = "# a trace\n\
    0 0 0 G - - -\n\
    1 0 0 A 0000:00:01.0\n\
    2 0 0 M 0 0 16777216 3\n\
    3 0 1 M ffff0000 7000 8192 6\n\
    3 1 1 M ffff2000 9000 4096 5\n\
    4 1 1 U ffff0000 - 12288\n\
    5 1 2 M 7fffffff0000 1000 4096 3\n\
    6 0 1 M ffff1000 7000 4096 1\n\
    7 0 0 U 200000 - 4096\n\
    # 8 mark: half\n\
    9 1 1 S ffff0000 - 4096\n\
    10 1 2 U 7fffffff0000 - 4096\n";

/// A page is used again after its flush, by the other CPU.
const LAZY: &str = "0 0 0 M 1000 1000 4096 3\n\
    1 0 0 M 2000 5000 4096 3\n\
    2 1 0 U 1000 - 4096\n\
    3 1 0 U 2000 - 4096\n\
    4 0 0 G - - -\n\
    5 1 0 M 1000 9000 8192 1\n";

#[test]
fn good_traces_are_replayed_without_a_mismatch() {
    let strict = json(&replay("good_strict.txt", STRICT.as_bytes(), &[]));
    let lazy = json(&replay("good_lazy.txt", LAZY.as_bytes(), &["--levels", "5", "--small-pages"]));
    let figures = |value: &serde_json::Value| {
        ["events", "maps", "unmaps", "mismatches", "table_frames_peak"]
            .map(|name| value[name].as_u64().unwrap())
    };
    // Three roots; three tables for 16 MiB of large leaves, one more for the leaf that is split; three and three for the others.
    assert_eq!(figures(&strict), [11, 5, 3, 0, 3 + 2 + 1 + 3 + 3]);
    assert_eq!(figures(&lazy), [6, 3, 2, 0, 5]);
    assert_eq!(
        (strict["traces"][0]["lazy"].as_bool(), lazy["traces"][0]["lazy"].as_bool()),
        (Some(false), Some(true))
    );
    for outcome in [strict, lazy] {
        assert_eq!(outcome["pool"]["in_use"], 0);
        assert_eq!(outcome["pool"]["table_frames_leaked"], 0);
        // From which tier depends on which CPUs the threads were put.
        let hits = ["cache_hits", "depot_hits"].map(|tier| outcome["pool"][tier].as_u64().unwrap());
        assert!(hits.iter().sum::<u64>() > 0);
    }
}

#[test]
fn good_traces_leave_nothing_stale_behind_any_unit() {
    for unit in ["second-stage", "first-stage", "incoherent", "caching-mode", "small-pages"] {
        for (name, trace) in [("strict", STRICT), ("lazy", LAZY)] {
            let outcome = json(&replay(&format!("{name}_{unit}.txt"), trace.as_bytes(), &["--unit", unit]));
            let figures = ["mismatches", "stale_uses"].map(|figure| outcome[figure].as_u64());
            assert_eq!(figures, [Some(0), Some(0)], "{unit}, {name}");
            assert_eq!(outcome["pool"]["in_use"], 0);
        }
    }
}

#[test]
fn a_compressed_trace_is_read_and_a_damaged_one_refused() {
    let whole =
        fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/traces/nvme4k_strict.txt.zst")).unwrap();
    let cut = replay("cut.txt.zst", &whole[..whole.len() / 64], &[]);
    assert_refused(&cut, "line ", "cut off or damaged");
    let mut damaged = whole[..4096].to_vec();
    damaged[2048] ^= 0xFF;
    assert_eq!(replay("damaged.txt.zst", &damaged, &[]).status.code(), Some(2));
    assert_refused(&replay("magic.zst", &whole[..4], &[]), "line 1: ", "cut off or damaged");
}

#[test]
fn a_malformed_line_is_named_and_nothing_is_replayed() {
    let cases: [(&str, &[u8], &str); 22] = [
        ("no line feed", b"4 0 0 G - - -", "ends without a line feed"),
        ("cut in a field", b"4 0 0 M 1000 10", "ends without a line feed"),
        ("no time", b"\n", "has no time"),
        ("no operation", b"4 0 0\n", "has no operation"),
        ("no prot", b"4 0 0 M 1000 1000 4096\n", "has no prot"),
        ("no device", b"4 0 0 A\n", "has no device"),
        ("two spaces", b"4 0 0  G - - -\n", "has no operation"),
        ("a time that is none", b"x 0 0 G - - -\n", "the time is not a number"),
        ("negative CPU", b"4 -1 0 G - - -\n", "the CPU is not a number"),
        ("too many CPUs", b"4 64 0 G - - -\n", "the CPU number is above 63"),
        ("too many domains", b"4 0 1024 G - - -\n", "the domain number is above 1023"),
        ("unknown operation", b"4 0 0 X 1000 1000 4096 3\n", "the operation is none of"),
        ("surplus", b"4 0 0 U 3000 - 4096 3\n", "more fields"),
        ("misaligned iova", b"4 0 0 M 1001 1000 4096 3\n", "not a multiple of 4096"),
        ("misaligned size", b"4 0 0 M 1000 1000 4097 3\n", "not a multiple of 4096"),
        ("empty", b"4 0 0 M 1000 1000 0 3\n", "the size is zero"),
        ("huge", b"4 0 0 M 0 0 9223372036854775808 3\n", "the size is above"),
        ("beyond", b"4 0 0 M fffffffff000 1000 8192 3\n", "ends beyond"),
        ("no rights", b"4 0 0 M 1000 1000 4096 4\n", "the rights must contain"),
        ("time goes back", b"2 0 0 G - - -\n", "earlier than the line before"),
        ("not text", b"4 0 0 \xFF - - -\n", "is not text"),
        ("long", &[b'7'; 5000], "longer than 1024 bytes"),
    ];
    for (name, line, message) in cases {
        let trace = [b"3 0 0 M 3000 1000 4096 3\n# a comment\n".as_slice(), line].concat();
        assert_refused(&replay(&format!("{name}.txt"), &trace, &[]), "line 3: ", message);
    }
}

#[test]
fn a_trace_that_contradicts_itself_is_named() {
    for (name, line, message) in [
        ("mapped twice", "3 0 0 M 1000 9000 8192 3\n", "maps 0x2000, which is mapped"),
        ("never mapped", "3 0 0 U 2000 - 8192\n", "unmaps 0x3000, which is not mapped"),
        ("other domain", "3 0 1 U 2000 - 4096\n", "unmaps 0x2000, which is not mapped"),
    ] {
        let trace = format!("1 0 0 M 2000 1000 4096 3\n2 0 1 M 9000 1000 4096 3\n{line}");
        assert_refused(&replay(&format!("{name}.txt"), trace.as_bytes(), &[]), "line 3: ", message);
    }
    // Lazy, since the last line flushes: the page of the third line is not free yet.
    let early = "1 0 0 M 2000 1000 4096 3\n2 0 0 U 2000 - 4096\n3 1 0 M 2000 1000 4096 3\n4 0 0 G - - -\n";
    assert_refused(&replay("early.txt", early.as_bytes(), &[]), "line 3: ", "not flushed yet");
}

#[test]
fn a_file_that_is_not_there_is_refused() {
    let output = replay("there.txt", b"", &["--trace", "not_there.txt"]);
    assert_refused(&output, "not_there.txt: line 1: ", "cannot be read");
}

fn assert_refused(output: &Output, place: &str, message: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains(place) && text.contains(message), "`{place}` and `{message}` in: {text}");
    assert!(output.stdout.is_empty(), "nothing was replayed");
}
