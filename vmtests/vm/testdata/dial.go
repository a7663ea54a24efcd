// Dial says hello to the host over vsock and prints what it answers.
package main

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

const (
	afVsock  = 40
	hostCID  = 2
	hostPort = 6820
)

// sockaddrVM is struct sockaddr_vm.
type sockaddrVM struct {
	family, reserved uint16
	port, cid        uint32
	flags            uint8
	zero             [3]byte
}

func main() {
	fd, err := syscall.Socket(afVsock, syscall.SOCK_STREAM, 0)
	if err != nil {
		fmt.Println("dial: socket:", err)
		os.Exit(1)
	}
	a := sockaddrVM{family: afVsock, port: hostPort, cid: hostCID}
	if _, _, errno := syscall.Syscall(syscall.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&a)), unsafe.Sizeof(a)); errno != 0 {
		fmt.Println("dial: connect:", errno)
		os.Exit(1)
	}
	syscall.Write(fd, []byte("hello"))
	b := make([]byte, 64)
	n, err := syscall.Read(fd, b)
	fmt.Printf("dial: host says %q (%v)\n", b[:max(n, 0)], err)
}
