//! Ids, records, commands, messages, limits and canonical encoding of the grid
