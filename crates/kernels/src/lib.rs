//! Fast math with safe signatures; the one room that may hold unsafe code.
