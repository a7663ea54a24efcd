// Package attack breaks into a guest's web service as an outsider would: it has
// the guest's address and nothing else.
//
// The hole is the service's search, which lets a query reach a shell. One
// request through it writes a program that no image holds, makes it executable
// and runs it; the program connects out to the attacker and waits for orders.
package attack
