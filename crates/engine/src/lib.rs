//! Models, sampler and the synchronous step; generate() is the oracle.
