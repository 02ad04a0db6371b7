//! Files of the demo page, served from folders and from nowhere above them.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use axum::{
    body::Body,
    http::{Response, StatusCode, header},
};

/// Largest file that is served. The page and its wasm are far below.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// Answers with the file at `request`, a path relative to `root`.
pub(crate) async fn file(root: &Path, request: &str) -> Response<Body> {
    let Some(path) = resolve(root, request) else {
        return status(StatusCode::NOT_FOUND);
    };
    match read(&path).await {
        Ok(bytes) => {
            let mut response = Response::new(Body::from(bytes));
            let headers = response.headers_mut();
            headers.insert(
                header::CONTENT_TYPE,
                header::HeaderValue::from_static(content_type(&path)),
            );
            // The page changes with the program; a stale wasm beside a new loader breaks.
            headers.insert(
                header::CACHE_CONTROL,
                header::HeaderValue::from_static("no-cache"),
            );
            response
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => status(StatusCode::NOT_FOUND),
        Err(error) => {
            tracing::debug!(%error, "asset");
            status(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

pub(crate) fn status(code: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::from(code.to_string()));
    *response.status_mut() = code;
    response
}

async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = tokio::fs::metadata(path).await?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(io::ErrorKind::NotFound.into());
    }
    tokio::fs::read(path).await
}

/// The file that `request` names, or none where it points out of `root` or at a hidden file.
fn resolve(root: &Path, request: &str) -> Option<PathBuf> {
    let decoded = percent_decode(request)?;
    let relative = match decoded.trim_start_matches('/') {
        "" => "index.html",
        name => name,
    };
    let mut path = root.to_owned();
    for component in Path::new(relative).components() {
        match component {
            Component::Normal(name) if !name.to_string_lossy().starts_with('.') => path.push(name),
            _ => return None,
        }
    }
    Some(path)
}

/// RFC 3986 section 2.1; none where the result is not UTF-8 or holds a NUL or a backslash.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let high = char::from(rest.next()?).to_digit(16)?;
                let low = char::from(rest.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    let text = String::from_utf8(bytes).ok()?;
    (!text.contains(['\0', '\\'])).then_some(text)
}

fn content_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        // Streaming compilation needs exactly this type.
        Some("wasm") => "application/wasm",
        Some("json" | "map") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("ico") => "image/x-icon",
        Some("txt" | "md" | "ts") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_resolve_below_the_root() {
        let root = Path::new("/www");
        for (request, path) in [
            ("", "/www/index.html"),
            ("/", "/www/index.html"),
            ("app.js", "/www/app.js"),
            ("a%20b/c.css", "/www/a b/c.css"),
        ] {
            assert_eq!(resolve(root, request), Some(path.into()), "{request}");
        }
    }

    #[test]
    fn nothing_leads_out_or_to_hidden_files() {
        let root = Path::new("/www");
        for request in [
            "../etc/passwd",
            "a/../../etc/passwd",
            "%2e%2e/etc/passwd",
            "..%2fetc/passwd",
            ".git/config",
            "a/.env",
            "a\\..\\b",
            "%00",
            "%zz",
            "%f",
            "%ff",
        ] {
            assert_eq!(resolve(root, request), None, "{request}");
        }
    }

    proptest! {
        #[test]
        fn every_request_stays_below_the_root(request in "[a-z./%0-9\\\\]{0,40}") {
            if let Some(path) = resolve(Path::new("/www"), &request) {
                prop_assert!(path.starts_with("/www"));
                prop_assert!(path.components().all(|c| c != Component::ParentDir));
            }
        }
    }
}
