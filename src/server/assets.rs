//! Files of the demo page. They are served from folders, and never from above them.
//!
//! A file is read and sent piece by piece as the receiver takes it. It has validators and ranges
//! (RFC 9110 sections 13 and 14). If a compressed form stands beside the file, that is sent.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Component, Path, PathBuf},
    time::UNIX_EPOCH,
};

use axum::{
    body::{Body, Bytes},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts,
    },
};
use futures::{Stream, stream};
use headers::{
    ETag, Header, HeaderMapExt as _, IfMatch, IfModifiedSince, IfNoneMatch, IfRange,
    IfUnmodifiedSince, LastModified,
};
use tokio::{sync::Semaphore, task::spawn_blocking};

/// How many bytes are read at once. A slow receiver holds about this much memory.
const PIECE: usize = 16 * 1024;

/// Bounds how many reads of files run at once. More would be threads that wait for one disk.
static READS: Semaphore = Semaphore::const_new(8);

/// A compressed form: the name of its coding (RFC 9110 section 8.4.1), and the suffix of its file.
type Coding = (&'static str, &'static str);

/// The codings, smallest result first.
const CODINGS: [Coding; 2] = [("br", ".br"), ("gzip", ".gz")];

/// Answers with the file at `name`, a path relative to `root`.
pub(crate) async fn file(root: &Path, name: &str, request: &Parts) -> Response<Body> {
    let Some(name) = resolve(name) else {
        return status(StatusCode::NOT_FOUND);
    };
    let (root, accepted) = (root.to_owned(), accepted(&request.headers));
    match reading(move || Asset::open(&root, &name, &accepted)).await {
        Ok(asset) => asset.answer(request),
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

/// Runs `read`, which may wait for a disk, and returns its result.
async fn reading<T: Send + 'static>(
    read: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    // The semaphore is never closed.
    let _permit = READS.acquire().await.map_err(io::Error::other)?;
    spawn_blocking(read).await?
}

/// An open file, in the form that suits a request.
struct Asset {
    file: File,
    length: u64,
    tag: ETag,
    modified: LastModified,
    coding: Option<&'static str>,
    content_type: &'static str,
}

impl Asset {
    /// Opens the file `name` below `root`, or a compressed form of it that is `accepted`.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] also if it is not a file, or if a link leads out of `root` or to
    /// a hidden file.
    fn open(root: &Path, name: &Path, accepted: &[Coding]) -> io::Result<Self> {
        let root = fs::canonicalize(root)?;
        let plain = open_below(&root, &root.join(name))?;
        let content_type = content_type(name);
        for (coding, suffix) in accepted {
            let mut beside = root.join(name).into_os_string();
            beside.push(suffix);
            let Ok(compressed) = open_below(&root, Path::new(&beside)) else {
                continue;
            };
            // An older compressed file is of another version. A stale wasm with a new loader
            // breaks.
            if compressed.metadata()?.modified()? >= plain.metadata()?.modified()? {
                return Self::of(compressed, Some(coding), content_type);
            }
        }
        Self::of(plain, None, content_type)
    }

    fn of(
        file: File,
        coding: Option<&'static str>,
        content_type: &'static str,
    ) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let (length, modified) = (metadata.len(), metadata.modified()?);
        let age = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        let form = coding.unwrap_or("plain");
        let tag = format!("\"{:x}-{length:x}-{form}\"", age.as_nanos());
        Ok(Self {
            file,
            length,
            tag: tag.parse().map_err(io::Error::other)?,
            modified: modified.into(),
            coding,
            content_type,
        })
    }

    fn answer(self, request: &Parts) -> Response<Body> {
        let part = self.part(request);
        let (code, first, length) = match part {
            Part::None(code) => (code, 0, 0),
            Part::Whole => (StatusCode::OK, 0, self.length),
            Part::Range { first, length } => (StatusCode::PARTIAL_CONTENT, first, length),
        };
        let mut response = match code {
            StatusCode::NOT_MODIFIED => Response::new(Body::empty()),
            code if code.is_success() => Response::new(Body::empty()),
            code => status(code),
        };
        *response.status_mut() = code;
        let headers = response.headers_mut();
        headers.typed_insert(self.tag);
        headers.typed_insert(self.modified);
        // Browsers must ask again, because the page changes with the program.
        set(headers, header::CACHE_CONTROL, "no-cache");
        set(headers, header::VARY, "accept-encoding");
        set(headers, header::ACCEPT_RANGES, "bytes");
        let range = match part {
            Part::Range { first, length } => {
                format!("bytes {first}-{}/{}", first + length - 1, self.length)
            }
            _ => format!("bytes */{}", self.length),
        };
        if code == StatusCode::PARTIAL_CONTENT || code == StatusCode::RANGE_NOT_SATISFIABLE {
            headers.extend(HeaderValue::try_from(range).map(|r| (header::CONTENT_RANGE, r)));
        }
        if code.is_success() {
            set(headers, header::CONTENT_TYPE, self.content_type);
            if let Some(coding) = self.coding {
                set(headers, header::CONTENT_ENCODING, coding);
            }
            headers.insert(header::CONTENT_LENGTH, length.into());
            if request.method == Method::GET {
                *response.body_mut() = Body::from_stream(pieces(self.file, first, length));
            }
        }
        response
    }

    /// Returns which part of the file is sent. Conditions are checked in the order of RFC 9110
    /// section 13.2.2.
    fn part(&self, request: &Parts) -> Part {
        let headers = &request.headers;
        let modified = || self.modified.into();
        let unchanged = match header::<IfMatch>(headers) {
            Some(condition) => condition.precondition_passes(&self.tag),
            None => header::<IfUnmodifiedSince>(headers)
                .is_none_or(|condition| condition.precondition_passes(modified())),
        };
        if !unchanged {
            return Part::None(StatusCode::PRECONDITION_FAILED);
        }
        let is_news = match header::<IfNoneMatch>(headers) {
            Some(condition) => condition.precondition_passes(&self.tag),
            None => header::<IfModifiedSince>(headers)
                .is_none_or(|condition| condition.is_modified(modified())),
        };
        if !is_news {
            return Part::None(StatusCode::NOT_MODIFIED);
        }
        let same = header::<IfRange>(headers)
            .is_none_or(|condition| !condition.is_modified(Some(&self.tag), Some(&self.modified)));
        let range = headers.get(header::RANGE).filter(|_| same);
        match range.and_then(|range| range.to_str().ok()) {
            // Only GET has ranges (section 14.2).
            Some(range) if request.method == Method::GET => range_of(range, self.length),
            _ => Part::Whole,
        }
    }
}

/// Returns a field, or `None` if it is missing or malformed.
fn header<H: Header>(headers: &HeaderMap) -> Option<H> {
    headers.typed_try_get().ok().flatten()
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &'static str) {
    headers.insert(name, HeaderValue::from_static(value));
}

/// The part of a file that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    None(StatusCode),
    Whole,
    Range { first: u64, length: u64 },
}

/// Returns the range of a file of `length` bytes that a Range field asks for (RFC 9110 section
/// 14.1.2). A malformed field, and one with several ranges, may be ignored (section 14.2).
fn range_of(field: &str, length: u64) -> Part {
    let none = Part::None(StatusCode::RANGE_NOT_SATISFIABLE);
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse::<u64>().ok(),
        false => None,
    };
    let Some((unit, range)) = field.split_once('=') else {
        return Part::Whole;
    };
    let Some((first, last)) = range.trim().split_once('-') else {
        return Part::Whole;
    };
    if !unit.eq_ignore_ascii_case("bytes") {
        return Part::Whole;
    }
    match (first, number(first), last, number(last)) {
        ("", _, _, Some(0)) => none,
        ("", _, _, Some(_)) if length == 0 => none,
        ("", _, _, Some(suffix)) => {
            let first = length.saturating_sub(suffix);
            let length = length - first;
            Part::Range { first, length }
        }
        (_, Some(first), _, Some(last)) if last < first => Part::Whole,
        (_, Some(first), "", _) | (_, Some(first), _, Some(_)) if first >= length => none,
        (_, Some(first), "", _) => Part::Range {
            first,
            length: length - first,
        },
        (_, Some(first), _, Some(last)) => Part::Range {
            first,
            length: (length - first).min((last - first).saturating_add(1)),
        },
        _ => Part::Whole,
    }
}

/// Returns which of the [`CODINGS`] the sender of `headers` accepts (RFC 9110 section 12.5.3).
fn accepted(headers: &HeaderMap) -> Vec<Coding> {
    let fields = headers.get_all(header::ACCEPT_ENCODING);
    let texts: Vec<&str> = fields.iter().filter_map(|v| v.to_str().ok()).collect();
    let weight_of = |coding: &str| {
        let mut members = texts.iter().flat_map(|text| text.split(','));
        members.find_map(|member| {
            let (name, weight) = member.split_once(';').unwrap_or((member, "q=1"));
            let weight = weight.trim().strip_prefix("q=")?.parse::<f32>().ok()?;
            name.trim().eq_ignore_ascii_case(coding).then_some(weight)
        })
    };
    let accepts = |(coding, _): &Coding| {
        let weight = weight_of(coding).or_else(|| weight_of("*"));
        weight.is_some_and(|weight| weight > 0.0)
    };
    CODINGS.into_iter().filter(accepts).collect()
}

/// Opens a file whose real name is below `root` and not hidden.
fn open_below(root: &Path, path: &Path) -> io::Result<File> {
    let path = fs::canonicalize(path)?;
    let is_below = path.strip_prefix(root).is_ok_and(|name| !is_hidden(name));
    // This is checked before the file is opened, because opening a pipe waits for its writer.
    if !is_below || !fs::metadata(&path)?.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    File::open(path)
}

fn is_hidden(name: &Path) -> bool {
    let mut names = name.iter();
    names.any(|name| name.to_string_lossy().starts_with('.'))
}

/// Returns `length` bytes of `file` from `first` on. Each piece is read when the piece before it
/// has been taken.
fn pieces(file: File, first: u64, length: u64) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((file, first, length), |(mut file, at, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        reading(move || {
            let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let mut piece = vec![0; most];
            file.seek(SeekFrom::Start(at))?;
            let read = file.read(&mut piece)?;
            if read == 0 {
                // The file has become shorter since its length was sent.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            piece.truncate(read);
            let read = read as u64;
            Ok(Some((Bytes::from(piece), (file, at + read, left - read))))
        })
        .await
    })
}

/// Returns the path below the root that `request` names, or `None` if it leads out of the root or
/// to a hidden file.
fn resolve(request: &str) -> Option<PathBuf> {
    let decoded = percent_decode(request)?;
    let relative = match decoded.trim_start_matches('/') {
        "" => "index.html",
        name => name,
    };
    let mut path = PathBuf::new();
    for component in Path::new(relative).components() {
        match component {
            Component::Normal(name) if !name.to_string_lossy().starts_with('.') => path.push(name),
            _ => return None,
        }
    }
    Some(path)
}

/// Decodes `text` (RFC 3986 section 2.1). Returns `None` if the result is not UTF-8 or holds a NUL
/// or a backslash.
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

pub(crate) fn content_type(path: &Path) -> &'static str {
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
mod tests;
