//! Owns the way into Rust: PVH entry in 32-bit mode, the switch to 64 bits over an identity map, and the trampoline by which the
//! other CPUs come the same way from 16-bit mode.

use core::arch::global_asm;

/// Where the trampoline is copied to: below 1 MiB, and a page number that fits into a SIPI.
pub const TRAMPOLINE: u64 = 0x8000;

/// The stack of one CPU's normal execution.
pub const STACK_SIZE: usize = 64 << 10;
/// The most CPUs that this machine can have.
pub const CPUS: usize = 8;

#[repr(C, align(4096))]
pub struct Stacks([[u8; STACK_SIZE]; CPUS]);

/// One stack for each CPU, found by its APIC number.
#[unsafe(no_mangle)]
pub static mut STACKS: Stacks = Stacks([[0; STACK_SIZE]; CPUS]);

#[repr(C, align(4096))]
pub struct TopTables([[u64; 512]; 2]);

/// The identity map of the first 512 GiB: one table that names one table of 1 GiB pages. Filled by the boot code.
#[unsafe(no_mangle)]
static mut TOP_TABLES: TopTables = TopTables([[0; 512]; 2]);

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
}

/// The code with which another CPU starts, to be copied to [`TRAMPOLINE`].
pub fn trampoline() -> &'static [u8] {
    // SAFETY: both symbols are the linker's, around one section of read-only data.
    unsafe {
        let start = &raw const trampoline_start;
        core::slice::from_raw_parts(start, (&raw const trampoline_end).offset_from_unsigned(start))
    }
}

global_asm!(
    r#"
.section .note.pvh, "a", @note
    .long 4, 4, 18              // length of the name, length of the value, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_entry

.section .text.boot, "ax"
.code32
.globl pvh_entry
pvh_entry:                      // ebx: address of the start information
    cli
    mov edi, offset TOP_TABLES
    lea eax, [edi + 4096 + 3]   // present, writable
    mov [edi], eax
    add edi, 4096
    xor ecx, ecx
1:  mov eax, ecx
    shl eax, 30
    or eax, 0x83                // present, writable, a page of 1 GiB
    mov [edi + ecx * 8], eax
    mov eax, ecx
    shr eax, 2
    mov [edi + ecx * 8 + 4], eax
    inc ecx
    cmp ecx, 512
    jne 1b
    xor ebp, ebp                // the first CPU

.globl enter_long_mode
enter_long_mode:                // ebp: 0 on the first CPU, 1 on the others
    mov eax, cr4
    or eax, 0x620               // PAE, OSFXSR, OSXMMEXCPT: core is compiled with SSE2
    mov cr4, eax
    mov eax, offset TOP_TABLES
    mov cr3, eax
    mov ecx, 0xC0000080         // EFER
    rdmsr
    or eax, 0x100               // LME
    wrmsr
    mov eax, cr0
    and eax, 0xFFFFFFF3         // not EM, not TS
    or eax, 0x80000003          // PG, MP, PE
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    push 8
    mov eax, offset long_mode
    push eax
    retf

.code64
long_mode:
    xor eax, eax
    mov ss, eax
    mov ds, eax
    mov es, eax
    mov ecx, 0xFEE00020         // the number of this CPU's APIC, in the upper byte
    mov edi, [rcx]
    shr edi, 24
    lea eax, [rdi + 1]
    imul rax, rax, {stack_size}
    lea rsp, [rax + STACKS]
    mov esi, ebx
    test ebp, ebp
    jnz 2f
    call {first}
2:  call {other}
    ud2

.balign 8
boot_gdt:
    .quad 0
    .quad 0x00AF9A000000FFFF    // 64-bit code
    .quad 0x00CF9A000000FFFF    // 32-bit code
    .quad 0x00CF92000000FFFF    // data
boot_gdt_pointer:
    .word 31
    .long boot_gdt
    .long 0

.section .trampoline, "a"
.code16
.globl trampoline_start
trampoline_start:
    jmp 1f
.balign 8                       // the table and its pointer stand at known places
    .word 31
    .long {trampoline} + 16
.balign 8
    .quad 0
    .quad 0x00AF9A000000FFFF
    .quad 0x00CF9A000000FFFF
    .quad 0x00CF92000000FFFF
1:  cli
    xor ax, ax
    mov ds, ax
    lgdtd [{trampoline} + 8]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xEA            // a far jump to 32 bits
    .long {trampoline} + (2f - trampoline_start)
    .word 0x10
.code32
2:  mov ax, 0x18
    mov ds, ax
    mov es, ax
    mov ss, ax
    lea esp, [{trampoline} + 4096]
    mov ebp, 1
    mov eax, offset enter_long_mode
    jmp eax
.globl trampoline_end
trampoline_end:
.text
.code64
"#,
    trampoline = const TRAMPOLINE,
    stack_size = const STACK_SIZE,
    first = sym crate::first_cpu,
    other = sym crate::machine::cpus::other_cpu,
);
