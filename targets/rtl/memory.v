// A buffer of block RAM: one write port, one read port with a register. A read of a word that is
// written in the same cycle gives the old one; nothing here relies on it.
module memory #(parameter WIDTH = 8, DEPTH = 2) (
    input clk,
    input write, input [31:0] write_address, input [WIDTH-1:0] write_data,
    input [31:0] read_address, output reg [WIDTH-1:0] read_data
);
    localparam BITS = DEPTH > 1 ? $clog2(DEPTH) : 1;
    (* ram_style = "block" *) reg [WIDTH-1:0] words [0:DEPTH-1];
    always @(posedge clk) begin
        if (write) words[write_address[BITS-1:0]] <= write_data;
        read_data <= words[read_address[BITS-1:0]];
    end
endmodule
