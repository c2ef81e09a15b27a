//! AJP13 to a backend.

/// A question whether the container answers.
pub const CPING: [u8; 5] = [0x12, 0x34, 0, 1, 10];
/// Its answer.
pub const CPONG: [u8; 5] = [b'A', b'B', 0, 1, 9];
