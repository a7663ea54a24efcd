package tiny

// Int80 is a system call as a program of 32 bits makes it: what it points at
// lies below 4 GiB.
func Int80(trap, a, b, c uint32) uint32
