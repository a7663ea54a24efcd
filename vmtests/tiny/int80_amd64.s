#include "textflag.h"

// func Int80(trap, a, b, c uint32) uint32
TEXT ·Int80(SB), NOSPLIT, $0-20
	MOVL trap+0(FP), AX
	MOVL a+4(FP), BX
	MOVL b+8(FP), CX
	MOVL c+12(FP), DX
	INT  $0x80
	MOVL AX, ret+16(FP)
	RET
