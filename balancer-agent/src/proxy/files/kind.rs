//! Media types: of files by their names, and which are text that compresses well.

use http::HeaderValue;

/// `Content-Type` of a file by its name; with a charset for what is nothing but text.
pub fn of_name(name: &[u8]) -> HeaderValue {
    let base = memchr::memrchr(b'/', name).map_or(name, |at| &name[at + 1..]);
    let extension = memchr::memrchr(b'.', base).map(|at| &base[at + 1..]);
    let kind = extension
        .and_then(|extension| std::str::from_utf8(extension).ok())
        .and_then(|extension| mime_guess::from_ext(extension).first_raw());
    match kind {
        // The usual ones without an allocation.
        Some("text/html") => HeaderValue::from_static("text/html; charset=utf-8"),
        Some("text/css") => HeaderValue::from_static("text/css; charset=utf-8"),
        Some("text/javascript" | "application/javascript") => {
            HeaderValue::from_static("text/javascript; charset=utf-8")
        }
        Some("text/plain") => HeaderValue::from_static("text/plain; charset=utf-8"),
        Some(text) if text.starts_with("text/") => {
            HeaderValue::from_str(&format!("{text}; charset=utf-8"))
                .unwrap_or(HeaderValue::from_static("text/plain; charset=utf-8"))
        }
        Some(other) => HeaderValue::from_static(other),
        None => HeaderValue::from_static("application/octet-stream"),
    }
}

/// Whether a `Content-Type` is worth compressing.
pub fn is_text(content_type: &[u8]) -> bool {
    let end = memchr::memchr(b';', content_type).unwrap_or(content_type.len());
    let mut lower = [0; 80];
    let essence = content_type[..end].trim_ascii();
    let Some(lower) = lower.get_mut(..essence.len()) else {
        return false;
    };
    lower.copy_from_slice(essence);
    lower.make_ascii_lowercase();
    let lower = &*lower;
    lower.starts_with(b"text/")
        || lower.ends_with(b"+json")
        || lower.ends_with(b"+xml")
        || [
            &b"application/json"[..],
            b"application/javascript",
            b"application/x-javascript",
            b"application/xml",
            b"application/x-ndjson",
            b"application/wasm",
            b"application/manifest",
            b"application/yaml",
            b"application/toml",
            b"application/x-sh",
            b"application/vnd.ms-fontobject",
            b"image/bmp",
            b"image/x-icon",
            b"image/vnd.microsoft.icon",
            b"font/ttf",
            b"font/otf",
        ]
        .contains(&lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_by_name() {
        for (name, expected) in [
            ("a/index.html", "text/html; charset=utf-8"),
            ("INDEX.HTM", "text/html; charset=utf-8"),
            ("style.css", "text/css; charset=utf-8"),
            ("app.js", "text/javascript; charset=utf-8"),
            ("app.mjs", "text/javascript; charset=utf-8"),
            ("notes.txt", "text/plain; charset=utf-8"),
            ("table.csv", "text/csv; charset=utf-8"),
            ("data.json", "application/json"),
            ("picture.svg", "image/svg+xml"),
            ("picture.png", "image/png"),
            ("picture.webp", "image/webp"),
            ("font.woff2", "font/woff2"),
            ("code.wasm", "application/wasm"),
            ("archive.tar.gz", "application/gzip"),
            ("README", "application/octet-stream"),
            ("v1.2/README", "application/octet-stream"),
            ("dot.", "application/octet-stream"),
            ("strange.never-heard-of", "application/octet-stream"),
        ] {
            assert_eq!(of_name(name.as_bytes()), expected, "{name}");
        }
        assert_eq!(of_name(b"caf\xe9.html"), "text/html; charset=utf-8");
        assert_eq!(of_name(b"file.\xff"), "application/octet-stream");
    }

    #[test]
    fn text_is_compressed_and_pictures_are_not() {
        for yes in [
            "text/html",
            "Text/HTML; charset=utf-8",
            "text/event-stream",
            "application/json",
            "application/ld+json;profile=x",
            "application/problem+json",
            "image/svg+xml",
            "application/xhtml+xml",
            "application/wasm",
            "application/javascript ; charset=utf-8",
        ] {
            assert!(is_text(yes.as_bytes()), "{yes}");
        }
        let long = format!("text/{}", "x".repeat(100));
        for no in [
            "",
            ";",
            "image/png",
            "video/mp4",
            "application/octet-stream",
            "application/zip",
            "application/json-but-not",
            "font/woff2",
            "multipart/byteranges; boundary=x",
            &long,
        ] {
            assert!(!is_text(no.as_bytes()), "{no}");
        }
    }
}
