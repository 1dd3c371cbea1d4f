//! Prices, matching and scoring
