// total = sum + (first word of a tile ? what earlier tiles left, or 0 : what was summed so far).
module accumulators #(parameter COUNT = 1, SUM = 32) (
    input clk, input valid, input first, input fresh,
    input [COUNT*SUM-1:0] sum, input [COUNT*SUM-1:0] earlier, output [COUNT*SUM-1:0] total
);
    reg [COUNT*SUM-1:0] so_far;
    genvar i;
    generate for (i = 0; i < COUNT; i = i + 1) begin : lane
        wire [SUM-1:0] base = first ? (fresh ? {SUM{1'b0}} : earlier[i*SUM +: SUM]) : so_far[i*SUM +: SUM];
        assign total[i*SUM +: SUM] = base + sum[i*SUM +: SUM];
    end endgenerate
    always @(posedge clk) if (valid) so_far <= total;
endmodule
