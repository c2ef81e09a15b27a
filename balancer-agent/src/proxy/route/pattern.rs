//! Patterns of mounts and exclusions, compiled so that a lookup costs about as much as
//! reading the path once, however many there are.
//!
//! mod_jk's rules: `*` is any number of characters, `/` included; `?` is one (a byte, as in
//! mod_jk); everything else is itself, with case. Patterns with more `/` are tried first,
//! then longer ones, then in the order of the file; the first that matches wins.
//!
//! Every pattern begins with literal text, up to its first wildcard. These texts make a
//! radix tree; at its nodes hang what may follow ([`Tail`]), best rank first. A lookup walks
//! down along the path, and looks at each node for something better than it has. Most
//! patterns are exact or end in their only `*`: for them that is all. It allocates nothing,
//! and takes linear time in the path for each pattern that it has to try out.

use memchr::memmem::Finder;

/// A set of patterns.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    /// The first is the root. Empty when there are no patterns.
    nodes: Vec<Node>,
}

#[derive(Clone, Debug)]
struct Node {
    /// Text on the way from the parent, not empty but at the root.
    label: Box<[u8]>,
    /// Sorted by their labels' first bytes, which differ.
    children: Vec<u32>,
    /// First bytes of the children's labels, so that the right one is found in one place.
    first: Box<[u8]>,
    /// By rank.
    tails: Vec<(u32, u32, Tail)>,
}

/// What has to follow the literal beginning of a pattern.
#[derive(Clone, Debug)]
enum Tail {
    /// Nothing.
    End,
    /// `*`
    Any,
    /// Wildcards and text.
    Pieces(Pieces),
}

/// A pattern after its literal beginning: `first * middle * middle * last`, or `first`
/// alone without a `*`.
#[derive(Clone, Debug)]
struct Pieces {
    first: Piece,
    /// With at least one `*`: what stands between stars, and after the last.
    rest: Option<(Vec<Piece>, Piece)>,
}

/// Text in which `?` may stand for one byte.
#[derive(Clone, Debug)]
enum Piece {
    Text(Box<Finder<'static>>),
    /// `None` is `?`.
    Holes(Box<[Option<u8>]>),
}

impl Patterns {
    /// Compiles patterns, given in the order of the file.
    pub fn new<'p>(patterns: impl IntoIterator<Item = &'p str>) -> Self {
        let mut sorted: Vec<(usize, &str)> = patterns.into_iter().enumerate().collect();
        let slashes = |p: &str| memchr::memchr_iter(b'/', p.as_bytes()).count();
        // Stable, so that the order of the file decides last.
        sorted.sort_by_key(|(_, p)| std::cmp::Reverse((slashes(p), p.len())));
        let mut set = Self::default();
        for (rank, (place, pattern)) in sorted.into_iter().enumerate() {
            set.insert(rank as u32, place as u32, pattern.as_bytes());
        }
        for node in &mut set.nodes {
            node.tails.sort_by_key(|(rank, _, _)| *rank);
        }
        set
    }

    /// Place, in the order of the file, of the pattern that takes this path.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        let mut node = self.nodes.first()?;
        let mut rest = path;
        let mut best: Option<(u32, u32)> = None;
        loop {
            for (rank, place, tail) in &node.tails {
                if best.is_some_and(|(r, _)| r < *rank) {
                    break;
                }
                if tail.matches(rest) {
                    best = Some((*rank, *place));
                    break;
                }
            }
            let Some(&byte) = rest.first() else { break };
            let Some(child) = memchr::memchr(byte, &node.first) else {
                break;
            };
            node = &self.nodes[node.children[child] as usize];
            match rest.strip_prefix(&*node.label) {
                Some(after) => rest = after,
                None => break,
            }
        }
        best.map(|(_, place)| place as usize)
    }

    /// Whether any pattern takes this path.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.find(path).is_some()
    }

    fn insert(&mut self, rank: u32, place: u32, pattern: &[u8]) {
        let wild = memchr::memchr2(b'*', b'?', pattern).unwrap_or(pattern.len());
        let tail = match &pattern[wild..] {
            b"" => Tail::End,
            // Several stars in a row mean as much as one.
            rest if rest.iter().all(|&b| b == b'*') => Tail::Any,
            rest => Tail::Pieces(Pieces::new(rest)),
        };
        let node = self.node(&pattern[..wild]);
        self.nodes[node].tails.push((rank, place, tail));
    }

    /// The node at the end of this text; made when it is not there.
    fn node(&mut self, mut text: &[u8]) -> usize {
        if self.nodes.is_empty() {
            self.push(Box::default());
        }
        let mut at = 0;
        while let Some(&byte) = text.first() {
            let Some(place) = memchr::memchr(byte, &self.nodes[at].first) else {
                let leaf = self.push(text.into());
                self.adopt(at, leaf, byte);
                return leaf;
            };
            let child = self.nodes[at].children[place] as usize;
            let label = &self.nodes[child].label;
            let common = label.iter().zip(text).take_while(|(a, b)| a == b).count();
            at = match common == label.len() {
                true => child,
                false => self.split(at, place, common),
            };
            text = &text[common..];
        }
        at
    }

    /// Puts a node into the way from `parent` to its child, after `common` bytes.
    fn split(&mut self, parent: usize, place: usize, common: usize) -> usize {
        let child = self.nodes[parent].children[place] as usize;
        let label = std::mem::take(&mut self.nodes[child].label);
        let (upper, lower) = label.split_at(common);
        let middle = self.push(upper.into());
        self.nodes[child].label = lower.into();
        self.adopt(middle, child, lower[0]);
        self.nodes[parent].children[place] = middle as u32;
        middle
    }

    fn push(&mut self, label: Box<[u8]>) -> usize {
        self.nodes.push(Node {
            label,
            children: Vec::new(),
            first: Box::default(),
            tails: Vec::new(),
        });
        self.nodes.len() - 1
    }

    fn adopt(&mut self, parent: usize, child: usize, first: u8) {
        let parent = &mut self.nodes[parent];
        parent.children.push(child as u32);
        let mut bytes = std::mem::take(&mut parent.first).into_vec();
        bytes.push(first);
        parent.first = bytes.into();
    }
}

impl Tail {
    fn matches(&self, rest: &[u8]) -> bool {
        match self {
            Self::End => rest.is_empty(),
            Self::Any => true,
            Self::Pieces(pieces) => pieces.matches(rest),
        }
    }
}

impl Pieces {
    fn new(pattern: &[u8]) -> Self {
        let mut split = pattern.split(|&b| b == b'*').map(Piece::new);
        let first = split.next().unwrap_or_else(|| Piece::new(b""));
        let mut rest: Vec<Piece> = split.collect();
        Self {
            first,
            rest: rest.pop().map(|last| (rest, last)),
        }
    }

    /// Each piece between stars is taken as early as it can be: whatever a later place would
    /// leave to the following pieces, an earlier one leaves too.
    fn matches(&self, text: &[u8]) -> bool {
        let Some((middle, last)) = &self.rest else {
            return self.first.len() == text.len() && self.first.is_at(text);
        };
        if text.len() < self.first.len() + last.len() || !self.first.is_at(text) {
            return false;
        }
        let (text, end) = text.split_at(text.len() - last.len());
        if !last.is_at(end) {
            return false;
        }
        let mut text = &text[self.first.len()..];
        for piece in middle {
            match piece.find(text) {
                Some(at) => text = &text[at + piece.len()..],
                None => return false,
            }
        }
        true
    }
}

impl Piece {
    fn new(text: &[u8]) -> Self {
        match text.contains(&b'?') {
            false => Self::Text(Box::new(Finder::new(text).into_owned())),
            true => Self::Holes(text.iter().map(|&b| (b != b'?').then_some(b)).collect()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Text(finder) => finder.needle().len(),
            Self::Holes(bytes) => bytes.len(),
        }
    }

    /// Whether `text` begins with it.
    fn is_at(&self, text: &[u8]) -> bool {
        match self {
            Self::Text(finder) => text.starts_with(finder.needle()),
            Self::Holes(bytes) => {
                text.len() >= bytes.len()
                    && bytes
                        .iter()
                        .zip(text)
                        .all(|(p, t)| p.is_none_or(|p| p == *t))
            }
        }
    }

    /// Its first place in `text`.
    fn find(&self, text: &[u8]) -> Option<usize> {
        match self {
            Self::Text(finder) => finder.find(text),
            Self::Holes(bytes) => {
                let last = text.len().checked_sub(bytes.len())?;
                (0..=last).find(|&at| self.is_at(&text[at..]))
            }
        }
    }
}

#[cfg(test)]
#[path = "pattern_tests.rs"]
mod tests;
