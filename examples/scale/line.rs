//! A cache line: who has it, and what it costs to get it.
//!
//! As with MESI, a line is with one CPU that may write it, or with any number that read it. A CPU whose line does not suit asks for it; the requests
//! for one line are served one after the other, each for as long as the line travels. Half-way through, the request reaches those who have
//! the line, and takes it away, or the right to write it; until then they go on using it. Caches are large enough for everything.

use framepool_injected::injection::{AccessKind, Site};
use std::hash::Hasher;

/// Picoseconds.
pub(crate) type Time = u64;

/// Picoseconds in a nanosecond.
pub(crate) const NANOSECOND: Time = 1000;

/// Where the CPUs are, and what accesses cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) cpus: usize,
    pub(crate) nodes: usize,
    /// An access to a line that the CPU has.
    pub(crate) own: Time,
    /// A line that comes from another CPU of the node, or from memory.
    pub(crate) near: Time,
    /// A line that comes from another node.
    pub(crate) far: Time,
}

impl Layout {
    /// The node of a CPU: neighbours are together. The worker is on the first.
    pub(crate) fn node_of(&self, cpu: usize) -> usize {
        if cpu < self.cpus { cpu * self.nodes.min(self.cpus) / self.cpus } else { 0 }
    }
}

/// Who has a line.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// The CPU that may write it.
    writer: Option<usize>,
    /// The CPUs that may read it, a bit each.
    readers: Vec<u64>,
    /// Those who may still use it until a request reaches them, and whether they may write.
    leaving: Vec<(usize, Time, bool)>,
    /// When the last request will have been served.
    free_at: Time,
    /// For how long it has travelled in the part of the run that counts.
    pub(crate) busy: Time,
    /// The last access for which it has.
    pub(crate) wanted_by: Option<Site>,
}

impl Line {
    fn may_read(&self, cpu: usize) -> bool {
        self.readers.get(cpu / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }

    pub(crate) fn suits(&self, cpu: usize, kind: AccessKind, at: Time) -> bool {
        if self.writer == Some(cpu) || kind == AccessKind::Load && self.may_read(cpu) {
            return true;
        }
        let reads = kind == AccessKind::Load;
        self.leaving.iter().any(|&(who, until, writes)| who == cpu && at < until && (writes || reads))
    }

    fn readers(&self) -> impl Iterator<Item = usize> {
        let bits = |(index, &word): (usize, &u64)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit)
        };
        self.readers.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(bits)
    }

    /// Asks for the line at `at`; when it begins to travel, and when it is there.
    pub(crate) fn request(
        &mut self,
        layout: &Layout,
        cpu: usize,
        kind: AccessKind,
        at: Time,
    ) -> (Time, Time) {
        let node = layout.node_of(cpu);
        let is_far = |other: usize| layout.node_of(other) != node;
        let mut others = self.readers().filter(|&other| other != cpu).peekable();
        let is_read = kind == AccessKind::Load;
        let far = match others.peek() {
            None => false,
            // The nearest copy will do; or all of them have to go.
            Some(_) if is_read => others.all(is_far),
            Some(_) => others.any(is_far),
        };
        drop(others);
        let start = at.max(self.free_at);
        let travel = if far { layout.far } else { layout.near };
        let (reached, there) = (start + travel / 2, start + travel);
        self.free_at = there;
        self.busy += travel;
        self.leaving.retain(|leaving| leaving.1 > at && leaving.0 != cpu);
        if is_read {
            if let Some(writer) = self.writer.take()
                && writer != cpu
            {
                self.leaving.push((writer, reached, true));
            }
        } else {
            let leave = self.readers().filter(|&other| other != cpu).collect::<Vec<_>>();
            let writer = self.writer;
            self.leaving.extend(leave.into_iter().map(|other| (other, reached, writer == Some(other))));
            self.readers.clear();
        }
        if !is_read || self.readers().next().is_none() {
            self.writer = Some(cpu);
        }
        if self.readers.len() <= cpu / 64 {
            self.readers.resize(cpu / 64 + 1, 0);
        }
        if let Some(word) = self.readers.get_mut(cpu / 64) {
            *word |= 1 << (cpu % 64);
        }
        (start, there)
    }
}

/// Spreads the numbers of lines: they differ in the low bits, and the map looks at the high ones too.
#[derive(Default)]
pub(crate) struct LineHasher(u64);

impl Hasher for LineHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_usize(byte.into()));
    }

    fn write_usize(&mut self, number: usize) {
        self.0 = (self.0.rotate_left(5) ^ number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { cpus: 4, nodes: 2, own: 1, near: 110, far: 250 };

    fn line() -> Line {
        let mut line = Line::default();
        assert_eq!(line.request(&LAYOUT, 0, AccessKind::Store, 1000), (1000, 1110));
        line
    }

    #[test]
    fn a_line_is_with_one_writer_or_many_readers() {
        let mut line = line();
        assert!(line.suits(0, AccessKind::ReadModifyWrite, 1110) && !line.suits(1, AccessKind::Load, 1110));
        assert_eq!(line.request(&LAYOUT, 1, AccessKind::Load, 2000), (2000, 2110));
        let may_write = |line: &Line, at| [0, 1].map(|cpu| line.suits(cpu, AccessKind::Store, at));
        assert_eq!((may_write(&line, 2054), may_write(&line, 2055)), ([true, false], [false, false]));
        assert!([0, 1].iter().all(|&cpu| line.suits(cpu, AccessKind::Load, 9999)));
        assert_eq!(line.request(&LAYOUT, 0, AccessKind::ReadModifyWrite, 3000), (3000, 3110));
        assert!(line.suits(1, AccessKind::Load, 3054) && !line.suits(1, AccessKind::Load, 3055));
        assert!(line.suits(0, AccessKind::Store, 9999));
    }

    #[test]
    fn requests_are_served_one_after_the_other_and_from_afar_slower() {
        let mut line = line();
        assert_eq!(line.request(&LAYOUT, 1, AccessKind::Store, 1050), (1110, 1220));
        assert_eq!(line.request(&LAYOUT, 2, AccessKind::Load, 1060), (1220, 1470), "from the other node");
        assert_eq!(
            line.request(&LAYOUT, 3, AccessKind::Load, 1070),
            (1470, 1580),
            "there is a copy on this node"
        );
        assert_eq!(
            line.request(&LAYOUT, 3, AccessKind::Store, 2000),
            (2000, 2250),
            "a copy on the other has to go"
        );
    }

    #[test]
    fn neighbours_are_on_one_node() {
        let nodes = |cpus, nodes| {
            (0..cpus).map(|cpu| Layout { cpus, nodes, ..LAYOUT }.node_of(cpu)).collect::<Vec<_>>()
        };
        assert_eq!((nodes(4, 2), nodes(2, 8), nodes(3, 1)), (vec![0, 0, 1, 1], vec![0, 1], vec![0; 3]));
    }
}
