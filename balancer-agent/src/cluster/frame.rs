//! Frames on a connection between two nodes: four bytes, then the content.
//!
//! ```text
//! kind (8 bits) | length of the content (24 bits, big-endian) | content
//! ```

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Longest message, in bytes: two of the longest sessions' data, and what goes with them.
pub const MESSAGE_MAX: usize = (2 << 20) + (64 << 10);
/// Bytes before each content.
pub(super) const HEADER: usize = 4;

const DATA: u8 = 0;
const PING: u8 = 1;
const PONG: u8 = 2;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A message of those who use the cluster.
    Data(Bytes),
    /// Asks for a pong with the same number.
    Ping(u64),
    /// The answer.
    Pong(u64),
}

/// The other side does not speak this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    /// A kind that there is not.
    #[error("a frame of the unknown kind {0}")]
    Kind(u8),
    /// A length that its kind can't have.
    #[error("a frame of {0} bytes, which its kind can't have")]
    Length(usize),
}

/// Adds a message. It is at most [`MESSAGE_MAX`] long.
pub(super) fn put_data(out: &mut BytesMut, content: &[u8]) {
    out.reserve(HEADER + content.len());
    out.put_u32(u32::from(DATA) << 24 | content.len() as u32);
    out.put_slice(content);
}

pub(super) fn put_ping(out: &mut BytesMut, number: u64) {
    out.put_u32(u32::from(PING) << 24 | 8);
    out.put_u64(number);
}

pub(super) fn put_pong(out: &mut BytesMut, number: u64) {
    out.put_u32(u32::from(PONG) << 24 | 8);
    out.put_u64(number);
}

/// Takes the next frame when all of it is there.
///
/// # Errors
/// The bytes are no frame: nothing after them can be understood.
pub(super) fn next(input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(header) = input.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let header = u32::from_be_bytes(*header);
    let (kind, length) = ((header >> 24) as u8, (header & 0xff_ffff) as usize);
    match kind {
        DATA if length <= MESSAGE_MAX => {}
        PING | PONG if length == 8 => {}
        DATA | PING | PONG => return Err(FrameError::Length(length)),
        kind => return Err(FrameError::Kind(kind)),
    }
    if input.len() < HEADER + length {
        // Nothing grows by more than one message of the longest kind.
        input.reserve(HEADER + length - input.len());
        return Ok(None);
    }
    input.advance(HEADER);
    let mut content = input.split_to(length);
    Ok(Some(match kind {
        PING => Frame::Ping(content.get_u64()),
        PONG => Frame::Pong(content.get_u64()),
        _ => Frame::Data(content.freeze()),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(out: &mut BytesMut, frame: &Frame) {
        match frame {
            Frame::Data(content) => put_data(out, content),
            Frame::Ping(number) => put_ping(out, *number),
            Frame::Pong(number) => put_pong(out, *number),
        }
    }

    fn frame() -> impl Strategy<Value = Frame> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300).prop_map(|v| Frame::Data(v.into())),
            any::<u64>().prop_map(Frame::Ping),
            any::<u64>().prop_map(Frame::Pong),
        ]
    }

    proptest! {
        #[test]
        fn frames_come_back_in_whatever_pieces(
            frames in prop::collection::vec(frame(), 0..20),
            piece in 1usize..50,
        ) {
            let mut all = BytesMut::new();
            frames.iter().for_each(|frame| put(&mut all, frame));
            let (mut input, mut got) = (BytesMut::new(), Vec::new());
            for piece in all.chunks(piece) {
                input.extend_from_slice(piece);
                while let Some(frame) = next(&mut input).unwrap() {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, frames);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn any_bytes_end_well(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut input = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = next(&mut input) {}
            prop_assert!(input.capacity() <= 2 * MESSAGE_MAX);
        }
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let read = |bytes: &[u8]| next(&mut BytesMut::from(bytes));
        assert_eq!(read(b"GET "), Err(FrameError::Kind(b'G')));
        assert_eq!(
            read(&[DATA, 0x21, 0, 1]),
            Err(FrameError::Length(MESSAGE_MAX + 1))
        );
        assert_eq!(read(&[DATA, 0x21, 0, 0]), Ok(None));
        assert_eq!(read(&[PING, 0, 0, 7]), Err(FrameError::Length(7)));
        assert_eq!(read(&[PONG, 0, 0, 8, 0]), Ok(None));
    }
}
