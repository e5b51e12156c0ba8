//! Writes, merges, checks and shows rank tables.
