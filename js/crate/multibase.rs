//! The part of the crate multibase that addresses use: `/certhash`, `/p2p`, `/onion`, `/garlic64` and
//! `/garlic32`. The npm build compiles it in the place of the crate (wasm-pack.toml), whose tables for two
//! dozen alphabets would take a thirtieth of the wasm. `tests/instead.rs` compares the two.

use std::fmt;

/// The bases that occur in addresses. A `/certhash` in another one is an unknown base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    Base16Lower,
    Base32Lower,
    Base58Btc,
    Base64,
    Base64Pad,
    Base64Url,
    Base64UrlPad,
}

/// How a base that is not 58 writes bytes.
struct Digits {
    alphabet: &'static [u8],
    /// How many bits a digit has.
    bits: u32,
    is_padded: bool,
    /// Whether capital letters count as small ones.
    folds: bool,
}

const BASE_58: &str = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
const BASE_64: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const BASE_64_URL: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

impl Base {
    const ALL: [Self; 7] = [
        Self::Base16Lower,
        Self::Base32Lower,
        Self::Base58Btc,
        Self::Base64,
        Self::Base64Pad,
        Self::Base64Url,
        Self::Base64UrlPad,
    ];

    pub fn from_code(code: char) -> Result<Self> {
        let found = Self::ALL.iter().copied().find(|base| base.code() == code);
        found.ok_or(Error::UnknownBase(code))
    }

    pub fn code(&self) -> char {
        match self {
            Self::Base16Lower => 'f',
            Self::Base32Lower => 'b',
            Self::Base58Btc => 'z',
            Self::Base64 => 'm',
            Self::Base64Pad => 'M',
            Self::Base64Url => 'u',
            Self::Base64UrlPad => 'U',
        }
    }

    fn digits(self) -> Option<Digits> {
        let (alphabet, bits, is_padded) = match self {
            Self::Base16Lower => (b"0123456789abcdef" as &[u8], 4, false),
            Self::Base32Lower => (b"abcdefghijklmnopqrstuvwxyz234567" as &[u8], 5, false),
            Self::Base58Btc => return None,
            Self::Base64 => (BASE_64, 6, false),
            Self::Base64Pad => (BASE_64, 6, true),
            Self::Base64Url => (BASE_64_URL, 6, false),
            Self::Base64UrlPad => (BASE_64_URL, 6, true),
        };
        Some(Digits {
            alphabet,
            bits,
            is_padded,
            folds: bits < 6,
        })
    }

    pub fn encode<I: AsRef<[u8]>>(&self, input: I) -> String {
        match self.digits() {
            Some(digits) => digits.encode(input.as_ref()),
            None => base_x::encode(BASE_58, input.as_ref()),
        }
    }

    pub fn decode<I: AsRef<str>>(&self, input: I) -> Result<Vec<u8>> {
        let decoded = match self.digits() {
            Some(digits) => digits.decode(input.as_ref().as_bytes()),
            None => base_x::decode(BASE_58, input.as_ref()).ok(),
        };
        decoded.ok_or(Error::InvalidBaseString)
    }
}

impl Digits {
    fn encode(&self, bytes: &[u8]) -> String {
        let mut text = String::new();
        let (mut held, mut count) = (0u32, 0);
        let mut push =
            |value: u32| text.push(self.alphabet[value as usize % self.alphabet.len()].into());
        for byte in bytes {
            held = held << 8 | u32::from(*byte);
            count += 8;
            while count >= self.bits {
                count -= self.bits;
                push(held >> count);
            }
        }
        if count > 0 {
            push(held << (self.bits - count));
        }
        while self.is_padded && !text.len().is_multiple_of(4) {
            text.push('=');
        }
        text
    }

    fn decode(&self, mut text: &[u8]) -> Option<Vec<u8>> {
        if self.is_padded {
            if !text.len().is_multiple_of(4) {
                return None;
            }
            for _ in 0..2 {
                text = text.strip_suffix(b"=").unwrap_or(text);
            }
        }
        let mut bytes = Vec::new();
        let (mut held, mut count) = (0u32, 0);
        for digit in text {
            let digit = if self.folds {
                digit.to_ascii_lowercase()
            } else {
                *digit
            };
            let value = self.alphabet.iter().position(|known| *known == digit)?;
            held = held << self.bits | value as u32;
            count += self.bits;
            if count >= 8 {
                count -= 8;
                bytes.push((held >> count) as u8);
            }
            held &= (1 << count) - 1;
        }
        // What is left over is less than a digit, and zero.
        (count < self.bits && held == 0).then_some(bytes)
    }
}

pub fn decode<T: AsRef<str>>(input: T) -> Result<(Base, Vec<u8>)> {
    let input = input.as_ref();
    let code = input.chars().next().ok_or(Error::InvalidBaseString)?;
    let base = Base::from_code(code)?;
    Ok((base, base.decode(&input[code.len_utf8()..])?))
}

pub fn encode<T: AsRef<[u8]>>(base: Base, input: T) -> String {
    let mut text = base.encode(input);
    text.insert(0, base.code());
    text
}

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    UnknownBase(char),
    InvalidBaseString,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownBase(code) => write!(f, "Unknown base code: {code}"),
            Self::InvalidBaseString => write!(f, "Invalid base string"),
        }
    }
}

impl std::error::Error for Error {}
