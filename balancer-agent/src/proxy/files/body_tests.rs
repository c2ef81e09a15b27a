//! Bodies of files: their bytes in order, in bounded pieces, and cut when the file is.

use std::io::Write;

use http_body_util::BodyExt;

use super::*;

fn file(length: usize) -> (tempfile::NamedTempFile, Arc<File>, Vec<u8>) {
    let bytes: Vec<u8> = (0..length).map(|i| (i / 251 + i) as u8).collect();
    let mut named = tempfile::NamedTempFile::new().unwrap();
    named.write_all(&bytes).unwrap();
    let file = Arc::new(named.reopen().unwrap());
    (named, file, bytes)
}

fn whole(length: usize) -> Span {
    Span {
        first: 0,
        last: length as u64 - 1,
    }
}

/// Drops a file from the page cache, as far as its file system has one.
fn forget(file: &File) {
    file.sync_all().unwrap();
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    nix::fcntl::posix_fadvise(file, 0, 0, advice).unwrap();
}

#[tokio::test]
async fn pieces_are_bounded_and_in_order() {
    let length = 5 * CHUNK + 17;
    let (_named, file, bytes) = file(length);
    for cold in [false, true] {
        if cold {
            forget(&file);
        }
        let parts = VecDeque::from([
            Part::Text(Bytes::from_static(b"begin")),
            Part::File(whole(length)),
            Part::Text(Bytes::from_static(b"between")),
            Part::File(Span { first: 3, last: 9 }),
        ]);
        let mut body = FileBody::new(Arc::clone(&file), parts);
        let mut got = Vec::new();
        let mut left = (5 + length + 7 + 7) as u64;
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            assert!(!data.is_empty() && data.len() <= CHUNK);
            left -= data.len() as u64;
            assert_eq!(body.size_hint().exact(), Some(left));
            got.extend_from_slice(&data);
        }
        assert!(body.is_end_stream());
        let expected = [b"begin", &bytes[..], b"between", &bytes[3..=9]].concat();
        assert!(got == expected, "bytes differ");
    }
}

#[tokio::test]
async fn a_file_that_is_cut_ends_its_body_with_an_error() {
    let length = 4 * CHUNK;
    let (named, file, _) = file(length);
    let mut body = FileBody::new(file, VecDeque::from([Part::File(whole(length))]));
    assert!(body.frame().await.unwrap().is_ok());
    named.as_file().set_len(CHUNK as u64 + 10).unwrap();
    let rest = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(rest.len(), 10);
    assert!(body.frame().await.unwrap().is_err());
    assert!(body.frame().await.is_none());
    assert!(body.is_end_stream());
}

#[tokio::test]
async fn small_parts_are_read_at_once() {
    let (named, file, bytes) = file(1000);
    for cold in [false, true] {
        if cold {
            forget(&file);
        }
        let read = read_whole(&file, whole(1000)).await.unwrap().unwrap();
        assert_eq!(read, bytes);
        let read = read_whole(
            &file,
            Span {
                first: 10,
                last: 19,
            },
        )
        .await;
        assert_eq!(read.unwrap().unwrap(), bytes[10..20]);
    }
    named.as_file().set_len(500).unwrap();
    assert_eq!(read_whole(&file, whole(1000)).await.unwrap(), None);
}

#[tokio::test]
async fn the_waiting_way_reads_the_same() {
    let (_named, file, bytes) = file(3000);
    let buffer = BytesMut::from(&b"before"[..]);
    let read = read_waiting(&file, buffer, 2000, 1500).unwrap();
    assert_eq!(read, [b"before", &bytes[1500..]].concat());
}

#[tokio::test]
async fn a_directory_can_not_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let handle = Arc::new(File::open(directory.path()).unwrap());
    assert!(read_whole(&handle, whole(10)).await.is_err());
    let mut body = FileBody::new(handle, VecDeque::from([Part::File(whole(10))]));
    assert!(body.frame().await.unwrap().is_err());
    assert!(body.frame().await.is_none());
}
