// PE_M x PE_N dot products of PE_K lanes: a register after the product and after every level of the
// adder tree (TREE levels; PE_K is a power of two).
module gemm_array #(parameter PE_M = 1, PE_N = 1, PE_K = 1, TREE = 0, BITS = 8, SUM = 32) (
    input clk, input [PE_M*PE_K*BITS-1:0] a, input [PE_K*PE_N*BITS-1:0] b,
    output [PE_M*PE_N*SUM-1:0] sum
);
    genvar i, j, p, t;
    generate for (i = 0; i < PE_M; i = i + 1) begin : row
        for (j = 0; j < PE_N; j = j + 1) begin : column
            wire [PE_K*SUM-1:0] level [0:TREE];
            for (p = 0; p < PE_K; p = p + 1) begin : lane
                reg signed [2*BITS-1:0] product;
                always @(posedge clk)
                    product <= $signed(a[(i*PE_K+p)*BITS +: BITS]) * $signed(b[(p*PE_N+j)*BITS +: BITS]);
                assign level[0][p*SUM +: SUM] = {{(SUM-2*BITS){product[2*BITS-1]}}, product};
            end
            for (t = 0; t < TREE; t = t + 1) begin : tree
                for (p = 0; p < PE_K >> (t + 1); p = p + 1) begin : pair
                    reg [SUM-1:0] total;
                    always @(posedge clk)
                        total <= level[t][2*p*SUM +: SUM] + level[t][(2*p+1)*SUM +: SUM];
                    assign level[t+1][p*SUM +: SUM] = total;
                end
            end
            assign sum[(i*PE_N+j)*SUM +: SUM] = level[TREE][0 +: SUM];
        end
    end endgenerate
endmodule
