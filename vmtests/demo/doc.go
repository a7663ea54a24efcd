// Package demo is what `make demo` and `make demo-clean` run: it installs the
// product on this machine, runs a guest with a web service, lets the model
// learn, attacks the service and shows what became of it.
//
// It uses the product's own default paths, so that every command that it prints
// works as it stands; where something is installed there that is not the
// demo's, it refuses. What it makes stays until Clean.
package demo
