// Package product installs the built binaries as an operator would, into
// directories of its own choosing, runs the monitor as its own user with the
// capabilities it needs, and takes all of it away again.
//
// It stands outside the product: it knows file names, users and the command
// line, and imports none of it.
package product
