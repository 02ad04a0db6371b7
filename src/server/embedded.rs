//! Files of a page that are part of the program. Each is compressed by gzip, which all browsers take.

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, Response, StatusCode, header, request::Parts},
};
use data_encoding::HEXLOWER;
use headers::{ETag, HeaderMapExt as _, IfNoneMatch};

use super::assets::{self, content_type};

/// The names of the files below `/`, and their compressed contents.
pub(crate) type Files = &'static [(&'static str, &'static [u8])];

/// Answers with the file at `name`.
pub(crate) fn file(files: Files, name: &str, request: &Parts) -> Response<Body> {
    let name = match name {
        "" => "index.html",
        name => name,
    };
    let Some((_, content)) = files.iter().find(|(known, _)| *known == name) else {
        return assets::status(StatusCode::NOT_FOUND);
    };
    let tag = tag(content);
    let asked: Option<IfNoneMatch> = request.headers.typed_get();
    let known = asked.zip(tag.as_ref());
    let mut response = match known.is_some_and(|(asked, tag)| !asked.precondition_passes(tag)) {
        true => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        false => Response::new(Body::from(Bytes::from_static(content))),
    };
    let headers = response.headers_mut();
    tag.into_iter().for_each(|tag| headers.typed_insert(tag));
    for (name, value) in [
        (
            header::CONTENT_TYPE,
            content_type(std::path::Path::new(name)),
        ),
        (header::CONTENT_ENCODING, "gzip"),
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Tells the file from any other. A gzip file ends with the CRC-32 and the length of what is in it
/// (RFC 1952 section 2.3.1).
fn tag(content: &[u8]) -> Option<ETag> {
    let end: &[u8; 8] = content.last_chunk()?;
    format!("\"{}\"", HEXLOWER.encode(end)).parse().ok()
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    const FILES: Files = &[
        ("index.html", b"gzip of a 00000001"),
        ("npm/x.wasm", b"gzip of b 00000002"),
    ];

    fn answer(name: &str, tag: Option<&str>) -> Response<Body> {
        let mut request = Request::builder();
        if let Some(tag) = tag {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        file(FILES, name, &request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn files_are_found_by_their_names_and_known_by_their_tags() {
        assert_eq!(answer("", None).status(), StatusCode::OK);
        assert_eq!(
            answer("../index.html", None).status(),
            StatusCode::NOT_FOUND
        );
        let wasm = answer("npm/x.wasm", None);
        assert_eq!(wasm.headers()[header::CONTENT_TYPE], "application/wasm");
        assert_eq!(wasm.headers()[header::CONTENT_ENCODING], "gzip");
        let tag = wasm.headers()[header::ETAG].to_str().unwrap().to_owned();
        assert_eq!(
            answer("npm/x.wasm", Some(&tag)).status(),
            StatusCode::NOT_MODIFIED
        );
        assert_eq!(answer("", Some(&tag)).status(), StatusCode::OK);
    }
}
