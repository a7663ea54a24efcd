// Outguard-versions is a program for guests: it changes files in every way that
// there is, uses each version, and says on standard output what the agent is to
// have recorded:
//
//	digest TYPE PATH SHA256
//
// one line for each use of a file, in the order of the uses. TYPE is the event's:
// bprm_committed_creds for a run, mmap_file for a mapping that may be run,
// file_open for an open to read; of that, on tmpfs, the digest is to be no-file.
// The digests are of what the program itself has written, not of what it read
// back.
//
//	outguard-versions DIR|overlay:DIR...
//
// A DIR is made. On overlay:DIR an overlay is mounted over files that are there
// already, so that the first change of each copies it up.
//
// Two versions of a file, with a run or a mapping of the first between them, are held
// to be made within one tick of the clock that file systems take their times from:
// where the tick passed meanwhile, the pair is done again with another file, and if
// that never works the program fails. On overlays they are only mapped.
package main
