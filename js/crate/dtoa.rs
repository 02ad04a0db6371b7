//! The part of the crate dtoa that metrics use: numbers with at most six decimals, such as seconds to the
//! microsecond. The npm build compiles it in the place of the crate (wasm-pack.toml), whose tables for the
//! shortest text of any number would take 1,900 bytes of the wasm. `tests/instead.rs` compares the two.

/// The longest text: a sign, the digits of `u64::MAX`, and a point.
const LONGEST: usize = 22;

/// Holds the text of a number.
pub struct Buffer {
    bytes: [u8; LONGEST],
    /// Where the text begins. It is written from its end.
    start: usize,
}

/// A number that can be written.
pub trait Float: Into<f64> {}

impl Float for f32 {}
impl Float for f64 {}

impl Buffer {
    pub fn new() -> Self {
        Self {
            bytes: [0; LONGEST],
            start: LONGEST,
        }
    }

    fn put(&mut self, byte: u8) {
        self.start -= 1;
        self.bytes[self.start] = byte;
    }

    /// Writes `number`, rounded to six decimals. A number that is too large becomes the largest one that
    /// can be written.
    pub fn format<F: Float>(&mut self, number: F) -> &str {
        self.start = LONGEST;
        let number = number.into();
        // The cast keeps within the bounds of the integer.
        let micros = (number.abs() * 1e6 + 0.5) as u64;
        let (mut whole, mut decimals) = (micros / 1_000_000, micros % 1_000_000);
        let mut places = 6;
        while places > 1 && decimals % 10 == 0 {
            decimals /= 10;
            places -= 1;
        }
        for _ in 0..places {
            self.put(b'0' + (decimals % 10) as u8);
            decimals /= 10;
        }
        self.put(b'.');
        loop {
            self.put(b'0' + (whole % 10) as u8);
            whole /= 10;
            if whole == 0 {
                break;
            }
        }
        if number < 0.0 {
            self.put(b'-');
        }
        std::str::from_utf8(&self.bytes[self.start..]).unwrap_or_default()
    }
}
