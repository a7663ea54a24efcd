// Package api is the monitor's one API, for the command line, terminals, web
// pages and programs: Connect (JSON over HTTP), gRPC and gRPC-Web on a unix
// socket. apipb/outguard.proto is its specification.
//
//	outguard, curl, a program ──unix socket──> Server ──Backend──> the monitor
//
// The package decodes, filters, names and makes printable; what is true it asks
// of the Backend. Whoever may open the socket may give orders: its mode (0660)
// and group are the access control, and the kernel's word on who called goes to
// the log and the journal with every order.
//
// A caller costs a bounded amount: the connections, the streams, the size of a
// request and the time that a reader may take nothing are limited.
package api
